"""What a run's applications on Serve are called: several runs may share a cluster."""

from __future__ import annotations


def proxy_app(run_id: str) -> str:
    return f"{run_id}-proxy"


def rest_app(run_id: str) -> str:
    return f"{run_id}-rest"


def teacher_app(run_id: str) -> str:
    return f"{run_id}-teacher"


def student_app(run_id: str) -> str:
    return f"{run_id}-student"


def student_proxy_app(run_id: str) -> str:
    """The proxy that reads what the student says: an engine beside any that the run has up."""
    return f"{run_id}-student-proxy"


def student_rest_app(run_id: str) -> str:
    return f"{run_id}-student-rest"
