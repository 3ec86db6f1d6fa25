"""Tokenising by the chat template: the stop token, round-trips, lengths, and tokenizers that differ."""

from __future__ import annotations

import copy

import pytest

from proxykd.chat import ChatFormat
from proxykd.chat_template import template_text
from proxykd.corpus import Record
from proxykd.errors import ModelError, TemplateError
from proxykd.tokenising import tokenise_all
from proxykd.tokenizer import load_tokenizer, require_same_tokenizer, tokenizer_hash


def record(completion="a red cat", stopped=True, prompt="the dog?", record_id="r"):
    return Record(record_id, ({"role": "user", "content": prompt},), completion, stopped)


def with_template(tokenizer, template):
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = template
    return changed


def test_prompt_completion_and_stop_token_are_the_rendered_conversation(tokenizer):
    chat = ChatFormat(tokenizer)
    item = record()
    whole = tokenizer.apply_chat_template(
        [*item.messages, {"role": "assistant", "content": item.completion}], tokenize=False
    )
    ids = chat.prompt_ids(item.messages) + chat.completion_ids(item.completion)
    assert tokenizer.decode(ids) == whole.rstrip("\n")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.pad_token_id
    assert chat.decode(chat.completion_ids(item.completion)) == item.completion


def test_a_reply_that_ended_by_length_gets_no_stop_token(tokenizer):
    chat = ChatFormat(tokenizer)
    assert chat.completion_ids("cat", stopped=False) == chat.completion_ids("cat")[:-1]


@pytest.mark.parametrize("policy", ["drop", "truncate"])
def test_overlong_completions_follow_the_policy(tokenizer, policy):
    chat = ChatFormat(tokenizer)
    prompt = len(chat.prompt_ids(record().messages))
    records = [record(), record("cat " * 50, record_id="long"), record(prompt="dog " * 99, record_id="prompt")]
    found = tokenise_all(records, ["warmup"] * 3, chat, prompt + 20, policy)
    kept, notes = found.records, found.notes
    if policy == "drop":
        assert [r.id for r in kept] == ["r"]
        assert dict(notes) == {"completion_too_long": 1, "prompt_too_long": 1}
    else:
        assert [r.id for r in kept] == ["r", "long"]
        assert dict(notes) == {"truncated": 1, "prompt_too_long": 1}
        assert len(kept[1].completion_ids) == 20
        assert kept[1].completion_ids[-1] != chat.stop_token_id


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['role'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] + ' done ' }}{% endfor %}",
    ],
)
def test_a_template_that_does_not_round_trip_is_refused(tokenizer, template):
    with pytest.raises(TemplateError, match=r"name another"):
        ChatFormat(with_template(tokenizer, template))


def test_a_template_that_refuses_a_role_says_which(tokenizer):
    strict = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + tokenizer.chat_template
    )
    chat = ChatFormat(with_template(tokenizer, strict))
    with pytest.raises(TemplateError, match=r"\['system', 'user'\]: no system"):
        chat.prompt_ids(({"role": "system", "content": "s"}, {"role": "user", "content": "u"}))


@pytest.mark.parametrize("name", ["chatml", "llama-2", "zephyr"])
def test_shipped_templates_round_trip(tokenizer, name):
    changed = with_template(tokenizer, template_text(name))
    changed.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    chat = ChatFormat(changed)
    assert chat.stop_token_id == changed.eos_token_id
    system = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "the dog?"})
    assert "be brief" in changed.decode(chat.prompt_ids(system))


def test_a_missing_or_unknown_template_names_the_fix(tiny, tokenizer, tmp_path):
    bare = with_template(tokenizer, None)
    bare.save_pretrained(tmp_path / "bare")
    with pytest.raises(TemplateError, match=r"proxy\.chat_template.*llama-2"):
        load_tokenizer(tmp_path / "bare")
    assert load_tokenizer(tmp_path / "bare", "chatml").chat_template
    with pytest.raises(TemplateError, match="neither shipped"):
        load_tokenizer(tiny, "no-such-template")


def test_tokenizers_that_differ_are_refused_with_the_first_difference(tokenizer):
    require_same_tokenizer(tokenizer, copy.deepcopy(tokenizer), "student")
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<extra>"])
    with pytest.raises(ModelError, match="'<extra>' at id"):
        require_same_tokenizer(tokenizer, other, "student")
    assert tokenizer_hash(tokenizer) != tokenizer_hash(other)
    assert tokenizer_hash(tokenizer) != tokenizer_hash(with_template(tokenizer, template_text("zephyr")))
