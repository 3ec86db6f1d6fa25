"""The page: plain files without a build step, sent with a policy that lets nothing but them run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from actors.telemetry.event_files import entries_before
from proxykd.evaluation.inspection import read_inspected
from proxykd.report.trust_examples import trust_examples
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import write_atomic
from services.access.keys import PAGE
from services.dashboard.api import pairs_answer
from services.dashboard.library import Library

STATIC = Path(__file__).parent / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

REPORT_EVENTS, REPORT_PAIRS, REPORT_EXAMPLES = 200, 6, 2
"""What a report carries: the last events, pairs a round (lowest trust first), records a bar of the histogram."""


class Page(StaticFiles):
    """The files of a folder, index.html at the folder's own address, sent with a content security policy."""

    def __init__(self, folder: Path, policy: str = POLICY):
        super().__init__(directory=folder, html=True)
        self._headers = {"Content-Security-Policy": policy, **HEADERS}

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(self._headers)
        return response


def mount_page(app: FastAPI) -> None:
    """Everything in the page's addresses is relative, so that it works behind any prefix."""
    app.mount(PAGE, Page(STATIC), name="dashboard")


def write_report_page(run: RunDirectory, target: Path | None = None) -> Path:
    """Writes the run's page, to report/report.html unless told otherwise."""
    target = target or run.report.with_suffix(".html")
    write_atomic(target, report_page(Library.of_run(run), run.id).encode())
    return target


def report_page(library: Library, run_id: str) -> str:
    """A run's page as one file that needs no server: the same files inline, with the API's answers beside them.

    Its policy lets only these very scripts and styles run, and nothing be fetched.
    """
    styles = [(STATIC / name).read_text() for name in ("vendor/uPlot.min.css", "style.css")]
    scripts = [(STATIC / "vendor/uPlot.iife.min.js").read_text(), _one_script()]
    allowed = f"script-src {_hashes(scripts)}; style-src {_hashes(styles)}"
    policy = f"default-src 'none'; {allowed}; img-src data:; base-uri 'none'"
    data = json.dumps(_answers(library, run_id), allow_nan=False).replace("<", "\\u003c")
    head, body = re.split(r"</head>", (STATIC / "index.html").read_text(), maxsplit=1)
    head = re.sub(r"\s*<(link|script)\b[^>]*>(</script>)?", "", head)
    inline = "".join(f"<style>{text}</style>" for text in styles)
    code = f'<script>{scripts[0]}</script>\n<script type="module">{scripts[1]}</script>'
    return f'{head}<meta http-equiv="Content-Security-Policy" content="{policy}">\n{inline}\n</head>' + body.replace(
        "</body>", f'<script type="application/json" id="report">{data}</script>\n{code}\n</body>'
    )


def _answers(library: Library, run_id: str) -> dict[str, Any]:
    """What the page asks the API for, by path."""
    run, page = library.run(run_id), library.overview(run_id).model_copy(update={"directory": None})
    if run.report.exists():  # the page is a finished run's last act but one
        ended = page.status.model_copy(update={"state": "finished", "alive": False, "now": None})
        page = page.model_copy(update={"status": ended})
    found: dict[str, Any] = {
        "report": run_id,
        f"runs/{run_id}": page.model_dump(mode="json"),
        f"runs/{run_id}/events": {"events": entries_before(run.events, None, REPORT_EVENTS)},
    }
    for one in page.rounds:
        pairs = sorted(read_inspected(run, one.round) or [], key=lambda pair: pair["trust"])
        shown = pairs[:REPORT_PAIRS]
        found[f"runs/{run_id}/rounds/{one.round}/pairs"] = pairs_answer(pairs, shown, shown)
    if page.trust:
        edges = page.trust.histogram.edges
        found[f"runs/{run_id}/trust"] = {
            "records": [
                example.model_dump(mode="json")
                for low, high in pairwise(edges)
                for example in trust_examples(run, low, high, REPORT_EXAMPLES)
            ]
        }
    return found


def _one_script() -> str:
    """All modules in the order in which they build on each other, without their imports and exports.

    Their top-level names are distinct, so that one scope holds them all.
    """
    order: list[Path] = []

    def visit(path: Path) -> None:
        if path in order:
            return
        for name in re.findall(r'^import .*?from "(\./[\w./-]+)";', path.read_text(), re.MULTILINE | re.DOTALL):
            visit((path.parent / name).resolve())
        order.append(path)

    visit(STATIC / "app.js")
    text = "\n".join(path.read_text() for path in order)
    text = re.sub(r'^import .*?from "\./[\w./-]+";\n', "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^export (?=(async |function|const|class))", "", text, flags=re.MULTILINE)


def _hashes(texts: list[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
