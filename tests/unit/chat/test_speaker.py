"""Models in conversation: what they say is what the harness has them answer, and every piece of it is whole text."""

from __future__ import annotations

import itertools

import pytest
import torch

from proxykd.errors import ModelError, TemplateError
from proxykd.evaluation.harness import Answerer, generating
from proxykd.models import decoding
from proxykd.models.speaker import Said, Sampling, answer, open_speaker
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import SAMPLE, load_tokenizer
from services.cli.chat import Chosen, open_speakers
from services.cli.subjects import of_certificate
from tests.real_tokenizers import PUBLISHED
from tests.scripted_speaker import NEVER_ENDING, scripted_speaker
from tests.tiny_model import make_tokenizer

ASK = [{"role": "user", "content": "one two three?"}]
MODELS = ["student", "sft", "proxy", "base"]
SIXTEEN = Sampling(max_tokens=16)


def said_in_full(speaker, conversation, sampling=SIXTEEN):
    return "".join(said.text for said in speaker.reply(conversation, sampling))


@pytest.fixture(scope="module")
def speakers(run):
    return open_speakers(Chosen(str(run.root)))


def test_each_model_says_what_the_harness_has_it_answer(run, speakers):
    assert list(speakers) == MODELS
    talks = {name: [ASK] for name in MODELS}
    for name, talk in talks.items():  # the second turn goes on with its own first reply
        first = {"role": "assistant", "content": said_in_full(speakers[name], ASK)}
        talk.append([{"role": "system", "content": "red"}, *ASK, first, {"role": "user", "content": "naïve 日本 🎉"}])
    streamed = {name: [said_in_full(speakers[name], one) for one in talks[name]] for name in MODELS}
    answerer = Answerer("", backend="transformers", max_length=256)
    for subject in of_certificate(run, answerer, None):
        with subject.ready() as ready, generating(ready) as generate:
            answers = [said.text for said in generate(talks[subject.name], [16, 16])]
        assert streamed[subject.name] == answers
    assert len({tuple(replies) for replies in streamed.values()}) == len(MODELS)


def test_replies_come_side_by_side_a_token_of_each_in_turn():
    speakers = {"a": scripted_speaker("the cat")[0], "b": scripted_speaker("a dog and a tree")[0]}
    found = list(answer(speakers, dict.fromkeys(speakers, ASK), SIXTEEN))
    shorter = sum(name == "a" for name, _ in found)
    assert [name for name, _ in found[: 2 * shorter]] == ["a", "b"] * shorter
    assert {name for name, _ in found[2 * shorter :]} == {"b"}
    texts = {name: "".join(said.text for who, said in found if who == name) for name in speakers}
    assert texts == {"a": "the cat", "b": "a dog and a tree"}
    assert [(name, said.tokens) for name, said in found if said.ended == "stop"] == [
        (name, sum(who == name for who, _ in found)) for name in speakers
    ]


def test_no_piece_holds_a_part_of_a_character():
    text = "naïve 日本語 🎉👩‍👩‍👧 ẞ"
    pieces = [said.text for said in scripted_speaker(text)[0].reply(ASK, Sampling(max_tokens=99))]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces  # a byte that waits for the next


def test_bytes_that_are_no_character_come_through_once_that_is_sure(tiny):
    speaker = open_speaker(tiny, "float32", "cpu")
    tokenizer = load_tokenizer(tiny)
    chat, garbled = ChatFormat(tokenizer), 0
    for seed in range(20):
        torch.manual_seed(seed)
        ids = torch.randint(3, len(tokenizer), (12,)).tolist()
        texts = [chat.decode_begun(ids[:n]) for n in range(len(ids) + 1)]
        whole = chat.decode(ids)
        assert all(longer.startswith(text) for text, longer in itertools.pairwise([*texts, whole]))
        garbled += "\ufffd" in whole
    assert garbled > 5
    pieces = list(speaker.reply(ASK, Sampling(1.0, 64)))
    assert pieces[-1].ended
    assert [said.tokens for said in pieces] == list(range(1, len(pieces) + 1))


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_familys_text_only_ever_grows(family):
    published = PUBLISHED[family]
    chat = ChatFormat(load_tokenizer(published.folder(), published.template))
    for text in (SAMPLE, "  naïve 日本語\n\n🎉 ", "\n", ""):
        ids = chat.completion_ids(text)
        texts = [chat.decode_begun(ids[:n]) for n in range(len(ids) + 1)]
        assert chat.decode(ids) == text
        for begun, longer in itertools.pairwise([*texts, text]):
            assert longer.startswith(begun)
        assert "\ufffd" not in "".join(texts)


def test_what_the_template_puts_around_a_reply_is_held_back(tokenizer):
    """A lead of a blank line and an ending of one: neither is the reply's, not even half of it."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{{ '\n\n' if m['role'] == 'assistant' }}"
        "{{ m['content'] }}{{ '\n' if m['role'] == 'assistant' }}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = ChatFormat(tokenizer)
    ids = chat.completion_ids("one\ntwo\n")
    assert tokenizer.decode(ids) == "\n\none\ntwo\n\n<|im_end|>"
    texts = [chat.decode_begun(ids[:n]) for n in range(len(ids) + 1)]
    assert chat.decode(ids) == "one\ntwo\n"
    assert all("one\ntwo\n".startswith(text) for text in texts)
    assert texts[1:3] == ["", ""]
    assert chat.decode_begun(ids[:-2]) == "one\ntwo"  # the newline may be the template's


def test_earlier_replies_are_heard_without_their_thoughts():
    speaker, model = scripted_speaker("the cat")
    earlier = {"role": "assistant", "content": "<think>\nred\n</think>\n\nblue"}
    said_in_full(speaker, [*ASK, earlier, *ASK])
    [heard] = model.heard
    assert "blue<|im_end|>" in heard
    assert "red" not in heard


def test_a_reply_ends_at_its_most_tokens_or_at_the_context():
    *_, last = scripted_speaker(NEVER_ENDING)[0].reply(ASK, Sampling(max_tokens=7))
    assert (last.tokens, last.ended) == (7, "length")
    speaker, _ = scripted_speaker(NEVER_ENDING, context=64)
    prompt = len(ChatFormat(make_tokenizer()).prompt_ids(ASK))
    *_, last = speaker.reply(ASK, Sampling(max_tokens=500))
    assert (last.tokens, last.ended) == (64 - prompt, "length")


def test_a_conversation_beyond_the_context_is_refused_by_the_models_name():
    speakers = {"proxy": scripted_speaker("x")[0], "base": scripted_speaker("x", context=30)[0]}
    long = [{"role": "user", "content": "the red stone " * 9}]
    with pytest.raises(
        ModelError, match=r"base: the conversation has \d+ tokens, .* context of 30; shorten the prompt"
    ):
        answer(speakers, dict.fromkeys(speakers, long), SIXTEEN)


def test_a_template_that_refuses_a_role_is_an_error_by_the_models_name(tokenizer):
    speaker, _ = scripted_speaker("x")
    own = speaker._chat.tokenizer
    own.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + own.chat_template
    )
    conversation = [{"role": "system", "content": "be brief"}, *ASK]
    with pytest.raises(TemplateError, match=r"student: the chat template refuses .* no system role"):
        answer({"student": speaker}, {"student": conversation}, SIXTEEN)


def test_drawn_replies_follow_the_temperature(tiny, monkeypatch):
    """The first token's shares at T, over many draws; a temperature next to 0 is the likeliest."""
    speaker = open_speaker(tiny, "float32", "cpu")
    scorer, chat = speaker._scorer, speaker._chat
    ids = torch.tensor([chat.prompt_ids(ASK)])
    logits, _ = scorer.next_logits(ids, torch.ones_like(ids), torch.arange(ids.shape[1])[None], None)
    shares = (logits[0].double() / 0.7).softmax(-1)
    draws, likeliest = 2000, int(shares.argmax())
    drawn = decoding.Decoding(scorer, [ids[0].tolist()] * draws, 0, 0.7).next_tokens()
    error = (shares[likeliest] * (1 - shares[likeliest]) / draws).sqrt()
    assert abs(drawn.count(likeliest) / draws - shares[likeliest]) < 4 * error
    greedy = [said_in_full(speaker, ASK, Sampling(t, 12)) for t in (0.0, 1e-300)]
    assert greedy[0] == greedy[1]
    assert len({said_in_full(speaker, ASK, Sampling(3.0, 12)) for _ in range(3)}) > 1


def test_a_reply_that_nobody_goes_on_reading_is_not_gone_on_with():
    speaker, model = scripted_speaker(NEVER_ENDING)
    reply = speaker.reply(ASK, Sampling(max_tokens=1000))
    assert isinstance(next(reply), Said)
    reply.close()
    assert len(model.heard) == 1
    assert list(reply) == []
