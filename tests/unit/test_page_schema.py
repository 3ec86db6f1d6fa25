"""The page's JavaScript reads what the API's models have: every field, by its path, is in their JSON schema.

Each function of the scripts is listed with what its variables hold. A field that is renamed in Python, or misspelt in
JavaScript, has no place in the schema; a new function has to be listed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from proxykd.report.trust_examples import TrustExample
from services.dashboard.library import RunLine, RunPage
from services.dashboard.pages import STATIC

PAGE, LINE, EXAMPLE = (model.model_json_schema(mode="serialization") for model in (RunPage, RunLine, TrustExample))
Schema = dict[str, Any]

READS = {
    "run.js": {
        "RunPage": {"this.facts": ""},
        "heading": {"run": "run", "status": "status"},
        "pipeline": {"stage": "pipeline[]"},
        "fidelity": {"one": "fidelity[]", "one[slice]": "fidelity[].validation"},
        "verdict": dict.fromkeys(("one", "first", "last", "kls[0]", "kls.at(-1)"), "fidelity[]"),
        "labels": {"student": "student", "soft": "soft_labels"},
        "trust": {"{}": "trust", "histogram": "trust.histogram"},
        "student": {"facts": "student", "phase": "student.on_policy"},
        "studentRows": {"{}": "student", "kls": "student.true_kl", "sft": "student.sft"}
        | {"measured": "student.after", "kl": "student.true_kl.after", "less": "student.sft.student_less_sft"},
        "onPolicyText": {"{}": "student.on_policy"},
        "validationCurve": {"p": "student.curve[]"},
        "costs": {"stage": "pipeline[]"},
        "corpus": {"facts": "corpus"},
        "restarts": {"one": "coordinators[]"},
        "example": {"record": ""},
        "PARTS": {"f": "", "stage": "pipeline[]"},
    },
    "outcome.js": {"outcome": {"{}": "outcome"}, "roles": {"{}": "run", "teacher": "run.teacher"}},
    "rounds.js": {
        "rounds": {"one": "rounds[]"},
        "roundCharts": {"one": "rounds[]", "of()": "rounds[]", "beside()": "rounds[]"},
    },
    "explore.js": {"howToAsk": {"{}": "", "run": "run", "status": "status"}},
    "round.js": {
        "roundView": {"facts": "", "round": "rounds[]", "one": "rounds[]"},
        "neighbours": {"one": "rounds[]"},
        "numbers": {"round": "rounds[]"},
        "accuracy": {"{}": "rounds[]"},
        "change": {"measured": "rounds[].validation_change"},
        "answered": {"changed": "rounds[].task_change"},
    },
    "format.js": {"stageName": {"stage": "pipeline[]"}},
    "runs.js": {"list": {"run": ""}, "where": {"run": ""}},
}
"""By file and function: where in the answer a variable's value lies. `{}` is a first parameter that is taken apart."""
NOT_OF_THE_ANSWER = {
    "run.js": {"runView", "NowPart", "Log", "line"},
    "outcome.js": set(),
    "rounds.js": {"stepCurves", "measureChart", "droppedText"},
    "explore.js": {"exploreView", "Explorer", "positionOf", "bars", "meter", "tempered", "vocabularyOf", "tailWeight", "show"},
    "round.js": {"nats", "exact", "Pairs", "frameOf", "legendOf", "pairOf", "side", "colourOf"},
    "format.js": {
        "number", "withError", "signed", "signedWithError", "percent", "magnitude", "readable", "whole", "duration", "moment", "clock", "plural",
        "headlineText", "eventText",
    },
    "runs.js": {"runsView"},
}  # fmt: skip


def functions(name: str) -> dict[str, str]:
    """The top-level functions and classes of a script, and its PARTS, each with its text."""
    text = (STATIC / name).read_text()
    begin = re.compile(r"^(?:export )?(?:async )?(?:function|class|const) (\w+)", re.MULTILINE)
    starts = [(match.group(1), match.start()) for match in begin.finditer(text)]
    ends = [*(start for _, start in starts[1:]), len(text)]
    parts = {name: text[start:end] for (name, start), end in zip(starts, ends, strict=True)}
    return {name: part for name, part in parts.items() if name == "PARTS" or (not name.isupper() and "_" not in name)}


def names_in(pattern: str) -> list[str]:
    """The fields that a destructuring takes: `a, b: c` takes a and b."""
    return [part.partition(":")[0].strip() for part in pattern.split(",")]


def fields_read(text: str, variable: str) -> Iterator[str]:
    """What is read of a variable, as dotted paths."""
    if variable == "{}":
        yield from names_in(re.search(r"\(\{ ([^}]*) \}", text).group(1))
    elif variable.endswith("()"):
        for field in re.findall(rf'\b{variable[:-2]}\("(\w+)"\)', text):
            yield from (field, f"{field}_after") if variable == "beside()" else (field,)
    else:
        chain = rf"(?<![\w.]){re.escape(variable)}((?:\??\.\w+)*)"
        for found in re.finditer(rf"{chain}(?![\w(])", text):
            yield found.group(1).replace("?", "").lstrip(".")
        for pattern, path in re.findall(rf"const \{{ ([^}}]*) \}} = {chain};", text):
            yield from (f"{path.lstrip('.')}.{name}".lstrip(".") for name in names_in(pattern))


READ = [
    (file, function, f"{variable}.{path}", f"{root}.{path}".strip("."))
    for file, variables_of in READS.items()
    for function, variables in variables_of.items()
    for variable, root in variables.items()
    for path in dict.fromkeys(fields_read(functions(file)[function], variable))
    if path
]


def resolve(schema: Schema, node: Schema, path: list[str]) -> bool:
    """Whether some answer of this schema has such a field. What a value or a list can do (`length`) is JavaScript's."""
    if "$ref" in node:
        return resolve(schema, schema["$defs"][node["$ref"].rpartition("/")[2]], path)
    if "anyOf" in node:
        known = [one for one in node["anyOf"] if one.get("type") != "null"]
        return any(resolve(schema, one, path) for one in known)
    if not path:
        return True
    first, *rest = path
    if first == "[]":
        return node.get("type") == "array" and resolve(schema, node["items"], rest)
    if "properties" in node:
        return first in node["properties"] and resolve(schema, node["properties"][first], rest)
    if isinstance(node.get("additionalProperties"), dict):
        return resolve(schema, node["additionalProperties"], rest)
    return True


def has(schema: Schema, path: str) -> bool:
    return resolve(schema, schema, path.replace("[]", ".[]").split("."))


@pytest.mark.parametrize(("file", "function", "read", "path"), READ, ids=lambda value: value)
def test_every_field_that_the_page_reads_is_in_the_schema(file, function, read, path):
    schema = LINE if file == "runs.js" else EXAMPLE if function == "example" else PAGE
    assert has(schema, path), f"{file}, {function}: {read} is no field of the answer"


def test_what_is_read_by_a_computed_name_is_in_the_schema():
    slices = re.search(r"const slices = \[(.*)\]", functions("run.js")["corpus"]).group(1)
    for name in re.findall(r'"(\w+)"', slices):
        assert has(PAGE, f"corpus.{name}")
    for when in ("before", "offline", "after"):
        assert has(PAGE, f"student.{when}.held_out_nll")
        assert has(PAGE, f"student.true_kl.{when}.kl")
    assert has(PAGE, "fidelity[].test.held_out_nll")


@pytest.mark.parametrize("file", READS)
def test_every_function_is_listed(file):
    assert functions(file).keys() == READS[file].keys() | NOT_OF_THE_ANSWER[file]


def test_a_field_that_is_not_there_is_found_out():
    """And reads of every kind are seen: by a chain, an optional one, a computed name, and taken apart."""
    paths = {path for _, _, _, path in READ}
    assert paths >= {
        "run.teacher.model", "fidelity[].true_kl.kl", "rounds[].margin_mean_after", "trust.calibration", "outcome.less_sft",
        "trust.histogram.counts", "soft_labels.share_mass_over_095.share", "rounds[].validation_change.nll",
        "pipeline[].busy_seconds", "coordinators[].epoch", "student.curve[].step", "history",
    }  # fmt: skip
    assert len(READ) > 80
    for wrong in ("run.teacher.name", "rounds[].steps0", "trust.histogram.bars", "pipeline[].hours"):
        assert not has(PAGE, wrong), wrong


def test_no_two_scripts_of_the_page_declare_one_name():
    """A report has them all in one script, where a second declaration of a name leaves the page empty."""
    declared = re.compile(r"^(?:export )?(?:async )?(?:function\*?|const|let|class) (\w+)", re.MULTILINE)
    names = Counter(name for path in STATIC.glob("*.js") for name in declared.findall(path.read_text()))
    assert names["lineChart"] == 1
    assert [name for name, count in names.items() if count > 1] == []
