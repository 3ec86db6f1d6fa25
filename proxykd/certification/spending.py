"""What a provider was asked for a certificate: how often, by which model, when and for how much. From storage alone."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from proxykd.collection.dataset import flags_of_line
from proxykd.collection.job import Collection
from proxykd.runs.json_model import JsonModel


class Spent(JsonModel):
    """Of all attempts. Times are ISO 8601, UTC; None where nothing was answered."""

    models: list[str]
    """Who may have answered, the first that did first."""
    provider: str
    replies: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    unanswered_cost_at_most: float
    """Of requests that no answer tells the cost of."""
    currency: str
    first: str | None
    last: str | None


def allowed_models(collection: Collection) -> list[str]:
    """Whose answers count: those that the config names, or else whoever answered first."""
    return list(collection.config.collection.accept_models) or collection.kept.models[:1]


def spent(collection: Collection) -> Spent:
    kept, prices = collection.kept, collection.config.collection.prices
    times = [place.read()["time"] for place in kept.replies.values()]
    return Spent(
        models=allowed_models(collection),
        provider=collection.config.teacher.provider,
        replies=len(kept.replies),
        prompt_tokens=kept.usage.prompt,
        completion_tokens=kept.usage.completion,
        cost=kept.usage.cost(prices),
        unanswered_cost_at_most=kept.unanswered.cost(prices),
        currency=prices.currency,
        first=at(min(times)) if times else None,
        last=at(max(times)) if times else None,
    )


def answers_of(collection: Collection) -> Mapping[str, str]:
    """The whole answers, by the prompt's id: those of models that may answer, neither empty nor broken off."""
    found = {}
    for request in collection.requests:
        if (place := collection.kept.replies.get(request.key)) is None:
            continue
        line = place.read()
        flags = flags_of_line(line)
        if line["model"] in allowed_models(collection) and not {"empty", "unfinished"} & set(flags):
            found[request.prompt_id] = line["text"].strip()
    return found


def at(seconds: float) -> str:
    """Whole seconds since 1970 as ISO 8601, UTC."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()
