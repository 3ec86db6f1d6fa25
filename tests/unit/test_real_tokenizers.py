"""What users' own families make of a conversation: training's token ids against what transformers renders and encodes.

`python -m tests.family_matrix` prints the same as a table.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from tests.family_matrix import COMPLETIONS, CONVERSATIONS, FORGERIES, control_ids, whole_ids
from tests.real_tokenizers import PUBLISHED


@pytest.fixture(scope="module", params=PUBLISHED)
def family(request):
    published = PUBLISHED[request.param]
    tokenizer = load_tokenizer(published.folder(), published.template)
    return published, tokenizer, ChatFormat(tokenizer)


@pytest.fixture(params=CONVERSATIONS)
def messages(request):
    return CONVERSATIONS[request.param]


def test_the_stop_token_is_the_familys(family):
    published, tokenizer, chat = family
    assert tokenizer.convert_ids_to_tokens(chat.stop_token_id) == published.stop


def test_a_prompt_is_what_serving_encodes(family, messages):
    _, tokenizer, chat = family
    rendered = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    assert chat.prompt_ids(messages) == tokenizer.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize("kind", COMPLETIONS)
def test_a_completion_is_the_teachers_bytes_and_the_whole_rendering(family, messages, kind):
    published, tokenizer, chat = family
    text = COMPLETIONS[kind]
    prompt, completion = chat.prompt_ids(messages), chat.completion_ids(text)
    assert completion[-1] == chat.stop_token_id
    assert chat.stop_token_id not in completion[:-1]
    assert chat.decode(completion) == text
    assert completion == [*chat.completion_ids(text, stopped=False), chat.stop_token_id]
    # Read on after the prompt, as a model would write it: nothing but the template's own space comes before it.
    told = tokenizer.decode([*prompt, *completion[:-1]])[len(tokenizer.decode(prompt)) :]
    assert told in (text, f" {text}") if published.name == "llama2" else told == text
    whole = whole_ids(tokenizer, messages, text, chat.stop_token_id)
    assert (prompt + completion == whole) == (kind not in published.trimmed)


@pytest.mark.parametrize("forged", FORGERIES)
def test_what_a_text_spells_is_text(family, forged):
    """In a prompt, in a completion, at each end of either: the control tokens are those of any other text."""
    published, tokenizer, chat = family
    if published.name in ("llama2", "gemma3"):  # SentencePiece knows no difference
        forged = forged.replace("\u2581", " ")
    control = control_ids(tokenizer)
    for text in (forged, f"a {forged} b", f"{forged}\n"):
        completion = chat.completion_ids(text)
        assert [i for i in completion if i in control] == [chat.stop_token_id]
        assert chat.decode(completion) == text
        for role in ("system", "user"):
            plain, spelt = (
                chat.prompt_ids(
                    ({"role": "system", "content": content}, {"role": "user", "content": "Is it seven?"})
                    if role == "system"
                    else ({"role": "user", "content": content},)
                )
                for content in ("x", text)
            )
            assert [i for i in spelt if i in control] == [i for i in plain if i in control]
            assert text.strip() in tokenizer.decode(spelt)


def test_saved_and_read_again_it_encodes_the_same(family, tmp_path):
    """The folder that the engine and the student get, read by transformers alone."""
    from transformers import AutoTokenizer

    _, tokenizer, chat = family
    tokenizer.save_pretrained(tmp_path)
    again, messages = AutoTokenizer.from_pretrained(tmp_path), CONVERSATIONS["system, turns"]
    rendered = again.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    assert again.encode(rendered, add_special_tokens=False) == chat.prompt_ids(messages)
    assert ChatFormat(load_tokenizer(tmp_path)).completion_ids("7 二\n\n x") == chat.completion_ids("7 二\n\n x")


def test_token_texts_make_up_the_completion(family):
    _, _, chat = family
    text = "It is seven, 7 and 'seven'."
    ids = chat.completion_ids(text, stopped=False)
    assert "".join(map(chat.token_text, ids)).strip() == text
    spans = chat.spans(text)
    assert len(spans) == len(ids)
    assert [max(start, 0) for start, _ in spans] == sorted(max(start, 0) for start, _ in spans)
    assert spans[-1][1] == len(text)
    assert [text[max(a, 0) : b].strip() for a, b in spans] == [chat.token_text(i).strip() for i in ids]


def test_thoughts_stand_where_the_family_writes_them(tmp_path):
    """Qwen 3 has tokens for them; Llama 3.1 has none, and gets them as text."""
    qwen = PUBLISHED["qwen3"]
    tokenizer = load_tokenizer(qwen.folder(), thinking=True)
    chat, user = ChatFormat(tokenizer), CONVERSATIONS["user"]
    whole = tokenizer.apply_chat_template(
        [*user, {"role": "assistant", "content": "Yes.", "reasoning_content": "Six and one."}], tokenize=False
    )
    ids = chat.prompt_ids(user) + chat.completion_ids("Yes.", thoughts="Six and one.")
    assert tokenizer.decode(ids) == whole.rstrip("\n")
    assert ids == tokenizer.encode(whole.rstrip("\n"), add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids("<think>") in ids
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).chat_template == tokenizer.chat_template  # as every later reader finds it
    silent = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": "Yes."}], tokenize=False)
    assert tokenizer.decode(chat.prompt_ids(user) + chat.completion_ids("Yes.")) == silent.rstrip("\n")

    llama = ChatFormat(load_tokenizer(PUBLISHED["llama3_1"].folder()))
    ids = llama.completion_ids("Yes.", thoughts="Six and one.")
    assert llama.decode(ids) == "<think>\nSix and one.\n</think>\n\nYes."


def test_a_call_of_tools_is_the_familys_own(messages):
    """Qwen 3's template writes it; Llama 3.1's (as packaged here, without tools) does not, and says so."""
    from proxykd.errors import TemplateError
    from proxykd.text.corpus import Record

    tools = ({"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {}}},)
    calls = ({"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC <|im_end|>"}}},)
    record = Record("r", messages, "", tool_calls=calls, tools=tools)
    tokenizer = load_tokenizer(PUBLISHED["qwen3"].folder())
    chat = ChatFormat(tokenizer)
    reply = tokenizer.decode(chat.reply_ids(record))
    assert reply == ('<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC <|im_end|>"}}\n</tool_call><|im_end|>')
    assert chat.reply_ids(record).count(chat.stop_token_id) == 1
    thinking = ChatFormat(load_tokenizer(PUBLISHED["qwen3"].folder(), thinking=True))
    thought = tokenizer.decode(thinking.reply_ids(replace(record, reasoning="Six.")))
    assert thought == f"<think>\nSix.\n</think>\n\n{reply}"
    assert "clock" in tokenizer.decode(chat.prompt_ids(record.messages, record.tools))
    llama = ChatFormat(load_tokenizer(PUBLISHED["llama3_1"].folder()))
    with pytest.raises(TemplateError, match="leaves out the tools"):
        llama.prompt_ids(record.messages, record.tools)
    with pytest.raises(TemplateError, match="call of tools"):
        llama.reply_ids(record)


def test_the_class_that_a_folder_names_does_not_change_what_it_encodes():
    """transformers 5 builds a Llama tokenizer over DeepSeek's vocabulary: every space, newline and 二 would be lost."""
    from tokenizers import Tokenizer

    folder = PUBLISHED["deepseek_v3"].folder()
    text = "A word, 二 and\n\tanother."
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
