"""Values that nobody thought of, for tests by hypothesis. FUZZ=10000 tries that many of each."""

from __future__ import annotations

import copy
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ", "150"))
FUZZED = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.sampled_from(["", "\ud83d", "\0", "stop", "error", "nan", "~/x", "429", "\u2028", "{}", "é" * 300]),
)
JUNK = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def _places(value: Any, place: tuple = ()) -> list[tuple]:
    """Every place in nested values, by keys and indices."""
    found = [place]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*place, key))
    return found


@st.composite
def mutated(draw: Any, bases: list[Any]) -> Any:
    """One of `bases` with up to three of its values removed, replaced, or put into a list."""
    value = copy.deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(0, 3))):
        places = _places(value)
        *way, last = draw(st.sampled_from(places)) or (None,)
        if last is None:
            return draw(JUNK)
        node = value
        for key in way:
            node = node[key]
        match draw(st.sampled_from(["replace", "remove", "wrap"])):
            case "replace":
                node[last] = draw(JUNK)
            case "remove":
                del node[last]
            case "wrap":
                node[last] = [node[last]]
    return value
