"""The dashboard's data: `/v1/runs` and `/v1/studies`, read from run directories alone. docs/api.md describes each."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from actors.telemetry.event_files import entries_before
from actors.telemetry.live_view import LiveView
from proxykd.evaluation.inspection import read_inspected, shared_frame
from proxykd.report.trust_examples import TrustExample, trust_examples
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import read_json
from services.access.refusals import ApiError
from services.dashboard.library import Library, RunLine, RunPage, UnreadableLine
from services.dashboard.live import Follower

PING_S = 15
LAST = 10**9
"""Above every segment's number."""
Views = Callable[[RunDirectory], LiveView | None]
Order = Literal["round", "trust", "margin"]
Page = Annotated[int, Query(ge=1, le=100)]
Segment = Annotated[int | None, Query(ge=0, le=LAST)]


def dashboard_api(library: Library, views: Views) -> APIRouter:
    """`views` gives the Redis of a run, where it is within reach."""
    api = APIRouter(prefix="/v1", tags=["dashboard"])

    @api.get("/runs")
    def runs() -> dict[str, list[RunLine | UnreadableLine]]:
        """Every run and study here, newest first, with where each stands."""
        return {"runs": library.runs()}

    @api.get("/runs/{run_id}")
    def run(run_id: str) -> RunPage:
        """One run's numbers so far."""
        return library.overview(run_id)

    @api.get("/runs/{run_id}/events")
    def events(run_id: str, before: Segment = None, limit: Page = 50) -> dict[str, Any]:
        """Its latest events, or the latest before a segment; oldest first."""
        return {"events": entries_before(library.run(run_id).events, before, limit)}

    @api.get("/runs/{run_id}/live", include_in_schema=False)
    async def live(
        run_id: str,
        after: Segment = None,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> EventSourceResponse:
        """Server-sent events: `event` as each happens (its id is its segment), `now` as the stage in hand goes on.

        Whoever names the last segment it has, by Last-Event-ID or `after`, misses none.
        """
        directory = library.run(run_id)
        seen = int(last_event_id[:9]) if last_event_id and last_event_id.isdecimal() else after
        follower = await Follower.join(directory, seen, views(directory))

        async def sent() -> AsyncIterator[ServerSentEvent]:
            async for kind, facts in follower.messages():
                segment = str(facts["segment"]) if kind == "event" else None
                yield ServerSentEvent(json.dumps(facts, allow_nan=False), event=kind, id=segment)

        return EventSourceResponse(sent(), ping=PING_S)

    @api.get("/runs/{run_id}/rounds/{number}/pairs")
    def pairs(
        run_id: str,
        number: int,
        order: Order = "round",
        wrong: bool = False,
        search: Annotated[str, Query(max_length=200)] = "",
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Page = 10,
    ) -> dict[str, Any]:
        """Pairs of a round token by token: in the round's order, lowest trust first or largest margin first.

        `wrong`: only those whose margin the round made negative. `search` looks in the prompt and both completions.
        """
        found = read_inspected(library.run(run_id), number)
        if found is None:
            raise ApiError(404, f"round {number} of {run_id} has no inspected pairs (yet)")
        chosen = [pair for pair in found if _wanted(pair, wrong, search.casefold())]
        if order != "round":
            chosen.sort(key=lambda pair: pair["trust"] if order == "trust" else -abs(pair["margin"]))
        return pairs_answer(found, chosen, chosen[offset : offset + limit])

    @api.get("/runs/{run_id}/trust")
    def trust(
        run_id: str,
        low: Annotated[float, Query(ge=0, le=1)] = 0.0,
        high: Annotated[float, Query(ge=0, le=1)] = 1.0,
        limit: Page = 10,
    ) -> dict[str, list[TrustExample]]:
        """Records of D_s whose trust weight lies in [low, high)."""
        return {"records": trust_examples(library.run(run_id), low, high, limit)}

    @api.get("/studies/{study_id}")
    def study(study_id: str) -> dict[str, Any]:
        """A study's report, None until it has one, the runs of its arms, and its figures' names."""
        directory = library.study(study_id)
        done = directory.report.exists()
        figures = sorted(path.stem for path in (directory.report.parent / "figures").glob("*.svg")) if done else []
        return {
            "id": study_id,
            "report": read_json(directory.report) if done else None,
            "runs": [f"{study_id}.{one.id}" for one in directory.runs()],
            "figures": figures,
        }

    @api.get("/studies/{study_id}/figures/{name}.svg")
    def figure(study_id: str, name: str) -> Response:
        folder = library.study(study_id).report.parent / "figures"
        known = {path.stem: path for path in folder.glob("*.svg")}
        if name not in known:
            raise ApiError(404, f"study {study_id} has no figure {name[:100]!r}; it has {', '.join(sorted(known))}")
        return Response(known[name].read_bytes(), media_type="image/svg+xml")

    return api


def pairs_answer(
    inspected: list[dict[str, Any]], found: list[dict[str, Any]], shown: list[dict[str, Any]]
) -> dict[str, Any]:
    """How many pairs were inspected and found, those that are shown, and what all inspected prompts have alike."""
    before, after = shared_frame([pair["prompt"] for pair in inspected])
    frame = {"before": before, "after": after}
    return {"inspected": len(inspected), "found": len(found), "frame": frame, "pairs": shown}


def _wanted(pair: dict[str, Any], wrong: bool, search: str) -> bool:
    text = "\n".join((pair["prompt"], "".join(pair["chosen"]), "".join(pair["rejected"])))
    return (not wrong or pair["margin"] < 0) and search in text.casefold()
