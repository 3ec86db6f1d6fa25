"""Every generation of tests/generations.py is read as it was meant."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.generations import GENERATIONS, Judged


def read_rightly(judged: Judged) -> bool:
    found = judged.question.extract(judged.generation)
    if judged.kind in ("latex", "algebra"):  # any reading but the right one is a wrong answer
        return judged.question.right(found) == (judged.reading is not None)
    if judged.reading is None or found is None:
        return found == judged.reading
    return replace(judged.question, answer=judged.reading).right(found)


def test_the_table_has_many_of_every_kind():
    counts = Counter(judged.kind for judged in GENERATIONS)
    assert min(counts[kind] for kind in ("letter", "number", "word", "latex")) >= 40
    assert len({(one.kind, one.question.answer, one.generation) for one in GENERATIONS}) >= 150


@pytest.mark.parametrize(
    "kind",
    [
        "letter",
        "number",
        "word",
        "latex",
        pytest.param("algebra", marks=pytest.mark.xfail(strict=True, reason="no algebra (docs/evaluate.md)")),
    ],
)
def test_what_models_write_is_read_as_it_is_meant(kind):
    wrong = [
        (one.generation, one.question.answer, one.reading, one.question.extract(one.generation))
        for one in GENERATIONS
        if one.kind == kind and not read_rightly(one)
    ]
    assert wrong == []
