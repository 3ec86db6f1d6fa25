"""What of `teacher` a request says, in each provider's words."""

from __future__ import annotations

from proxykd.collection.providers import chat_body, message_body
from proxykd.collection.requests import Request, request_identity
from proxykd.config import TeacherConfig

MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"})
REQUEST = Request("key", "p", "p", 0, MESSAGES, seed=7)


def test_openais_defaults_are_said_and_nothing_else():
    assert chat_body(TeacherConfig(model="m"), REQUEST) == {
        "model": "m", "messages": list(MESSAGES), "max_tokens": 512, "temperature": 1.0, "seed": 7,
    }  # fmt: skip


def test_every_key_of_the_sampling_reaches_openai():
    teacher = TeacherConfig(
        model="m", max_tokens=9, max_tokens_field="max_completion_tokens", temperature=0.5, top_p=0.9, top_logprobs=5,
        extra_body={"reasoning_effort": "low"},
    )  # fmt: skip
    assert chat_body(teacher, REQUEST) == {
        "model": "m", "messages": list(MESSAGES), "max_completion_tokens": 9, "temperature": 0.5, "seed": 7,
        "top_p": 0.9, "logprobs": True, "top_logprobs": 5, "extra_body": {"reasoning_effort": "low"},
    }  # fmt: skip


def test_anthropic_hears_what_departs_from_its_own_defaults():
    plain = {"model": "m", "messages": [MESSAGES[1]], "max_tokens": 512, "system": "Be brief."}
    assert message_body(TeacherConfig(model="m", provider="anthropic"), REQUEST) == plain
    teacher = TeacherConfig(
        model="m", provider="anthropic", temperature=0.5, top_p=0.9, extra_body={"metadata": {"user_id": "u"}}
    )
    said = {"temperature": 0.5, "top_p": 0.9, "metadata": {"user_id": "u"}}
    assert message_body(teacher, REQUEST) == plain | {"extra_body": said}


def test_what_an_api_does_not_take_is_left_out():
    teacher = TeacherConfig(model="m", leave_out=("seed", "temperature"))
    assert chat_body(teacher, REQUEST) == {"model": "m", "messages": list(MESSAGES), "max_tokens": 512}
    bare = TeacherConfig(model="m", leave_out=("max_tokens",), max_tokens_field="max_completion_tokens")
    assert chat_body(bare, REQUEST) == {"model": "m", "messages": list(MESSAGES), "temperature": 1.0, "seed": 7}


def test_what_shapes_a_request_is_part_of_its_key_and_the_defaults_are_as_they_were():
    shapes = [
        {},
        {"leave_out": ("seed",)},
        {"leave_out": ("temperature",)},
        {"max_tokens_field": "max_completion_tokens"},
    ]
    identities = [request_identity(TeacherConfig(model="m", **shape)) for shape in shapes]
    assert len({str(identity) for identity in identities}) == len(shapes)
    kept = {"model", "max_tokens", "temperature", "top_p", "top_logprobs", "extra_body", "provider", "endpoint"}
    assert identities[0].keys() == kept  # keys of data sets that were begun before stay
