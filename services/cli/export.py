"""Exporting a student: what was written, and how it was held against the student."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from proxykd.errors import ConfigError
from proxykd.export.formats import FORMATS, export
from proxykd.export.push import push, require_terms
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import fetch


def export_student(
    run_directory: str, form: str, by_sft: bool, out: str | None, repository: str | None, public: bool
) -> None:
    """Raises:
    ProxykdError: no such format, or what `export` and `push` raise.
    """
    if form not in FORMATS:
        raise ConfigError(f"--to {form}: there is no such format; {', '.join(FORMATS)} are written")
    run, console = RunDirectory.open(run_directory), Console()
    if repository is not None:
        require_terms(run.config())
    target = Path(out).absolute() if out else run.root / "export" / (f"sft-{form}" if by_sft else form)
    parity = export(run, form, target, by_sft)
    console.print(
        f"{parity.loaded_by} reads it as the student: {parity.tokens - parity.unseen} of {parity.tokens} tokens of "
        f"{parity.completions} held-out completions within {parity.mean_abs:.4f} nats on average (largest "
        f"{parity.max_abs:.4f}; {parity.tolerance:g} are allowed), {parity.conversations} conversations rendered and "
        f"cut alike",
        soft_wrap=True,
    )
    for path in sorted(target.iterdir()):
        if path.name not in ("READY", "manifest.json"):
            console.print(f"  {path}  {path.stat().st_size / 2**20:.1f} MiB", soft_wrap=True, highlight=False)
    if repository is not None:
        console.print(f"pushed: {push(run.config(), fetch(target), repository, public)}", soft_wrap=True)
