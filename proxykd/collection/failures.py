"""How a request can fail, and which of the ways an error of a provider is."""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from proxykd.collection.habits import SETTINGS, STATUS_OF_TYPE, Whose, fix_for, whose_error

MOST_SAID = 10_000
"""Characters that are kept of what a provider says; a gateway may send a whole page."""
NEVER_ARRIVED = {
    "ConnectError",
    "ConnectTimeout",
    "PoolTimeout",
    "ProxyError",
    "UnsupportedProtocol",
    "LocalProtocolError",
}
"""httpx's errors of a request that never reached the provider; by name, as each client brings its own httpx."""
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
Body = dict[str, Any]


class Failure(Exception):
    """A request that got no answer. Its message has the provider's words."""


class Limited(Failure):
    """Too many requests, and not charged. `retry_after` in seconds where the provider names it."""

    def __init__(self, message: str, retry_after: float | None):
        super().__init__(message)
        self.retry_after = retry_after


class Transient(Failure):
    """It may work the next time. `charged`: whether this one may have been."""

    def __init__(self, message: str, charged: bool, retry_after: float | None = None):
        super().__init__(message)
        self.charged = charged
        self.retry_after = retry_after


class Rejected(Failure):
    """This prompt will never be answered (too long, against a policy); others will."""


class Unclear(Failure):
    """Refused, and nothing says whether for the prompt or for the request: whether others are answered will tell.

    `by_length`: prompt and completion together are too long, so that any answer, even an earlier one, clears the
    request.
    """

    def __init__(self, message: str, by_length: bool):
        super().__init__(message)
        self.by_length = by_length


class Denied(Failure):
    """Nothing will be answered until somebody mends it: the key, the model's name, a parameter. `fix` says how."""

    def __init__(self, message: str, fix: str):
        super().__init__(message)
        self.fix = fix


@contextlib.contextmanager
def failures(sdk: ModuleType) -> Iterator[None]:
    """What the client `sdk` (openai or anthropic: both were made by one generator) raises, as a Failure.

    Raises:
        Failure: what failure_of makes of an HTTP status; Transient where there was no connection.
    """
    try:
        yield
    except sdk.APIStatusError as error:
        raise failure_of(error.status_code, error.response.headers, body_of(error.response)) from None
    except sdk.APIConnectionError as error:
        cause = error.__cause__ or error
        arrived = NEVER_ARRIVED.isdisjoint(kind.__name__ for kind in type(cause).__mro__)
        raise Transient(str(cause) or type(cause).__name__, charged=arrived) from None


def failure_of(status: int | None, headers: Mapping[str, str], body: object, paid: bool = False) -> Failure:
    """Returns the failure that an HTTP status with its body stands for; `paid`: an answer may have been begun."""
    error = error_in(body)
    said, field = words_of(error, body), field_of(error, body)
    if status is None:
        status = _status_in(error)
    prefix = "an error in place of an answer" if paid or status is None else f"HTTP {status}"
    message = storable(f"{prefix}: {said}"[:MOST_SAID])
    match whose_error(status, _told_by(error, said), field):
        case Whose.RATE:
            return Limited(message, retry_after(headers))
        case Whose.TRANSIENT:
            return Transient(message, charged=paid or status == 408, retry_after=retry_after(headers))
        case Whose.PROMPT:
            return Rejected(message)
        case Whose.LENGTH | Whose.UNCLEAR as whose:
            return Unclear(message, by_length=whose is Whose.LENGTH)
        case whose:
            return Denied(message, fix_for(whose, field))


def body_of(response: Any) -> object:
    """Returns a response's JSON, or its text where it is none."""
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        return response.text


def error_in(body: object) -> object:
    """Returns what a body says of an error: OpenAI and Anthropic have it under `error`, vLLM and Mistral bare."""
    return body["error"] if isinstance(body, dict) and body.get("error") else body


def words_of(error: object, body: object) -> str:
    """Returns what is said of an error, whole: its message, its code, and what else may explain it."""
    if not isinstance(error, dict):
        return error.strip() if isinstance(error, str) else json.dumps(error)
    message = error.get("message")
    if not isinstance(message, str):
        return json.dumps(error, ensure_ascii=False)
    outer = body if isinstance(body, dict) else {}
    more = {
        key: found
        for key in ("param", "detail", "details", "metadata", "innererror")
        if (found := error.get(key) or outer.get(key))
    }
    code = f" ({error['code']})" if error.get("code") else ""
    return f"{message}{code}" + (f" {json.dumps(more, ensure_ascii=False)}" if more else "")


def field_of(error: object, body: object) -> str | None:
    """Returns the field of the request that an error names: as `param`, by FastAPI's `loc`, or, of those that have a
    setting, before a colon (as Anthropic does) or in quotes."""
    facts = error if isinstance(error, dict) else {}
    if isinstance(param := facts.get("param"), str) and param:
        return re.split(r"[.\[]", param)[0]
    said = json.dumps(body, ensure_ascii=False).replace("\\", "")  # Mistral has JSON within a string
    if found := re.search(r'"loc": ?\["body", ?"(\w+)"', said):
        return found[1]
    message = facts.get("message")
    message = message if isinstance(message, str) else ""
    named = [*re.findall(r"^(\w+)(?:\.[\w.]+)?: ", message), *re.findall(r"""['"`](\w+)['"`]""", message)]
    return next((name for name in named if name in SETTINGS), None)


def _told_by(error: object, said: str) -> str:
    """The words that rules look at: not what a moderator repeats of the prompt."""
    if not isinstance(error, dict):
        return said
    inner = error.get("innererror")
    facts = [error.get("code"), error.get("type"), error.get("message"), error.get("detail"), error.get("details")]
    return " ".join(json.dumps(fact) for fact in [*facts, inner] if fact)


def _status_in(error: object) -> int | None:
    """The status that an error names itself: OpenRouter by its code, Anthropic by its type."""
    facts = error if isinstance(error, dict) else {}
    for value in (facts.get("code"), facts.get("status")):
        if re.fullmatch(r"[45]\d\d", str(value)):
            return int(str(value))
    return STATUS_OF_TYPE.get(str(facts.get("type")))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or `Retry-After` (seconds or a date); None where there is neither."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return _seconds(float(milliseconds) / 1000)
        value = headers.get("retry-after")
        if value is None:
            return None
        if value.replace(".", "", 1).isdigit():
            return _seconds(float(value))
        return _seconds(email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _seconds(value: float) -> float | None:
    return max(0.0, value) if math.isfinite(value) else None


def storable(text: str) -> str:
    """Returns `text` with U+FFFD for every half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    return LONE_SURROGATE.sub("\ufffd", text)
