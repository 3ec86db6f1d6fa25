"""Two tokenizers' tokens of the same reply: where both can be cut, against positions found by decoding prefixes."""

from __future__ import annotations

import random
import unicodedata
from dataclasses import replace
from itertools import pairwise, permutations

import numpy as np
import pytest

from proxykd.errors import AlignmentError, ModelError
from proxykd.text.alignment import ByteReader, align
from proxykd.text.chat import ChatFormat
from proxykd.text.corpus import Record
from proxykd.text.token_bytes import TokenBytes
from proxykd.text.tokenizer import SAMPLE, load_tokenizer
from proxykd.text.vocabulary_map import NONE, VocabularyMap
from tests.family_matrix import COMPLETIONS, FORGERIES
from tests.real_tokenizers import PUBLISHED
from tests.tiny_model import CHATML, make_tokenizer

PAIRS = [
    ("llama3_1", "qwen3"),
    ("llama3_1", "gemma3"),
    ("qwen3", "llama2"),
    ("deepseek_v3", "llama3_1"),
    ("llama2", "qwen3"),
]
PROSE = (
    "In 1789, 12345 people didn't agree: \u201cfreedom\u201d costs $3.50!\n\n\tdef f(x):\n        return x**2  # ok\n\n"
    "Él señaló que naïveté isn't Übermut. 二つの木\u3000と石。 Привет, мир! \U0001f389\U0001f468\u200d\U0001f469 end  of   it."
)
DECOMPOSED = unicodedata.normalize("NFD", "Él señaló naïveté, Việt, 각 x.")
TEXTS = [*COMPLETIONS.values(), *FORGERIES[:4], SAMPLE, PROSE, ""]


def record(text: str, **more) -> Record:
    return Record("r", ({"role": "user", "content": "Is it seven?"},), text, **more)


def read(reader: ByteReader, one: Record, first: int | None = None):
    return reader.read(one, reader.chat.reply_ids(one)[:first])


@pytest.fixture(scope="module")
def reader():
    """The families' readers by name, each made once."""
    known: dict[str, ByteReader] = {}

    def of(name: str) -> ByteReader:
        if name not in known:
            published = PUBLISHED[name]
            known[name] = ByteReader(ChatFormat(load_tokenizer(published.folder(), published.template)))
        return known[name]

    return of


def ends_by_decoding(chat: ChatFormat, text: str, ids: list[int]) -> list[int | None]:
    """Where each token ends, by decoding all up to it; None within a character."""
    found: list[int | None] = []
    for count in range(1, len(ids) + 1):
        decoded = chat.decode(ids[:count])
        found.append(len(decoded.encode()) if text.startswith(decoded) else None)
    return found


# -- bytes of tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_end_where_decoding_says(reader, name, text):
    one = record(text)
    found = read(reader(name), one)
    ids = found.ids_T.tolist()
    assert found.stopped
    assert found.known_T.all()
    assert found.ends_T[-1] == len(text.encode()) + 1
    for end, wanted in zip(
        found.ends_T[:-1].tolist(), ends_by_decoding(reader(name).chat, text, ids[:-1]), strict=True
    ):
        assert wanted is None or max(end, 0) == wanted


@pytest.mark.parametrize("name", ["llama3_1", "llama2"])
def test_pieces_are_what_a_token_adds_to_a_text(reader, name):
    """Whole characters of random tokens, decoded behind another."""
    chat, tokens = reader(name).chat, reader(name).tokens
    rng = random.Random(5)
    for token_id in rng.sample(range(len(tokens)), 400):
        if (
            tokens.control_V[token_id]
            or tokens.is_byte(token_id)
            or "\ufffd" in tokens.pieces[token_id].decode(errors="replace")
        ):
            continue
        assert chat.token_text(token_id).encode() == tokens.pieces[token_id]


def test_a_decoder_that_is_not_known_is_refused():
    from tokenizers import decoders

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelError, match="WordPiece"):
        TokenBytes(tokenizer)


def test_a_normaliser_that_loses_bytes_is_refused_with_the_first():
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(AlignmentError, match=r"at byte 0 b'Tokenizers t' became b'tokenizers t'"):
        ByteReader(ChatFormat(tokenizer))


def test_a_text_that_one_tokenizer_does_not_keep_is_refused_with_the_first_byte(reader):
    """SentencePiece writes U+2581 for a space, and reads one where a text holds it."""
    one = record("a \u2581 b")
    with pytest.raises(AlignmentError, match=r"b' a \\xe2\\x96\\x81 b' became b' a   b'"):
        read(reader("llama2"), one)
    read(reader("qwen3"), one)


def test_tokens_of_another_text_are_refused(reader):
    qwen = reader("qwen3")
    with pytest.raises(AlignmentError, match="at byte 5"):
        qwen.read(record("Yes, seven."), qwen.chat.reply_ids(record("Yes, eight.")))
    with pytest.raises(AlignmentError, match="at byte 11"):
        qwen.read(record("Yes, seven. No."), qwen.chat.reply_ids(record("Yes, seven.")))


# -- spans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("proxy", "student"), PAIRS)
@pytest.mark.parametrize("text", [*TEXTS, DECOMPOSED])
def test_spans_are_cut_wherever_both_have_a_boundary(reader, proxy, student, text):
    one = record(text)
    ours, theirs = read(reader(proxy), one), read(reader(student), one)
    spans = align(ours, theirs)
    if text != DECOMPOSED:
        ends = [
            ends_by_decoding(reader(name).chat, text, side.ids_T.tolist()[:-1])
            for name, side in ((proxy, ours), (student, theirs))
        ]
        both = {end for end in set(ends[0]) & set(ends[1]) if end is not None} | {0, len(text.encode())}
        characters = {len(text[:count].encode()) for count in range(len(text) + 1)}
        cuts = {0, *np.cumsum(spans.bytes_S[:-1]).tolist()}
        assert cuts & characters == both
        assert spans.bytes_S[-1] == 1
    for side, cuts, name in ((ours, spans.proxy_cuts, proxy), (theirs, spans.student_cuts, student)):
        assert (np.diff(cuts) > 0).all()
        assert cuts[-1] == len(side.ids_T)
        told = [reader(name).bytes_of(side.ids_T[a:b]) for a, b in pairwise(cuts[:-1])]
        pieces = np.split(np.frombuffer(text.encode(), np.uint8), np.cumsum(spans.bytes_S)[:-1])[:-1]
        for said, piece in zip(told, pieces, strict=True):
            wanted = piece.tobytes().decode(errors="surrogateescape")
            same = unicodedata.normalize("NFC", said.decode(errors="surrogateescape")).removeprefix(" ")
            assert same == unicodedata.normalize("NFC", wanted).removeprefix(" ")


def test_stop_stands_beside_stop_and_a_truncated_reply_ends_earlier(reader):
    llama, qwen = reader("llama3_1"), reader("qwen3")
    pairs = VocabularyMap(llama, qwen)
    one = record("It is seven.")
    whole = pairs.pair(read(llama, one), read(qwen, one))
    assert whole.proxy_at_N.tolist() == [0, 1, 2, 3, 4]
    unstopped = pairs.pair(read(llama, replace(one, stopped=False)), read(qwen, replace(one, stopped=False)))
    assert unstopped.proxy_at_N.tolist() == [0, 1, 2, 3]
    cut = pairs.pair(read(llama, one), read(qwen, one, first=2))
    assert cut.proxy_at_N.tolist() == [0, 1]
    cut = pairs.pair(read(llama, one, first=3), read(qwen, one))
    assert cut.proxy_at_N.tolist() == [0, 1, 2, NONE, NONE]
    assert len(cut.chunks_S4) == 0
    for count in (0, 1):
        assert pairs.pair(read(llama, one, first=0), read(qwen, one, first=count)).proxy_at_N.tolist() == [NONE] * count


def test_several_tokens_beside_several_are_chunks(reader):
    """Llama 3.1 takes up to three digits at a time, Qwen 3 one; 4 bytes of a mark that one splits."""
    llama, qwen = reader("llama3_1"), reader("qwen3")
    one = record("x 1234.")
    found = VocabularyMap(llama, qwen).pair(read(llama, one), read(qwen, one))
    assert [llama.tokens.pieces[i] for i in llama.chat.reply_ids(one)[:-1]] == [b"x", b" ", b"123", b"4", b"."]
    assert found.proxy_at_N.tolist() == [0, 1, NONE, NONE, NONE, 3, 4, 5]
    assert found.chunks_S4.tolist() == [[2, 1, 2, 3]]


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("text", [*TEXTS, DECOMPOSED])
def test_a_tokenizer_beside_itself_is_one_to_one(reader, name, text):
    """With what its template writes before the text (a space in Llama 2's), which both sides have; but for what its
    normaliser changed."""
    one = record(text)
    same = VocabularyMap(reader(name), reader(name))
    side = read(reader(name), one)
    pairing = same.pair(side, side)
    if side.known_T.all():
        assert pairing.proxy_at_N.tolist() == list(range(len(side.ids_T)))
        assert len(pairing.chunks_S4) == 0
    else:
        assert (name, text) == ("qwen3", DECOMPOSED)
    assert (same.same_V == np.arange(len(same.same_V))).all()
    ids = np.random.default_rng(0).integers(len(same.same_V), size=(len(side.ids_T), 10))
    if len(pairing.chunks_S4) == 0:
        assert (same.images(pairing, side, ids) == ids).all()


def test_what_one_template_writes_before_the_text_takes_part_in_no_span(reader):
    """Llama 2's tokens begin with the template's space: the first stands beside the text's first, but as another token."""
    llama, qwen = reader("llama2"), reader("qwen3")
    one = record("Yes, seven.")
    ours, theirs = read(llama, one), read(qwen, one)
    assert llama.bytes_of(ours.ids_T[:1]) == b" Yes"
    pairing = VocabularyMap(llama, qwen).pair(ours, theirs)
    assert pairing.proxy_at_N[0] == NONE
    assert pairing.chunks_S4[0].tolist() == [0, 1, 0, 1]
    assert (pairing.proxy_at_N[1:] != NONE).all()


def test_thoughts_are_aligned_where_both_templates_write_them_alike(reader):
    """Qwen 3 has control tokens for them, Llama 3.1 spells them."""
    one = record("Yes.", reasoning="Six and one.")
    qwen = ByteReader(ChatFormat(load_tokenizer(PUBLISHED["qwen3"].folder(), thinking=True)))
    for llama in (reader("llama3_1"), reader("llama2")):
        ours, theirs = read(llama, one), read(qwen, one)
        spans = align(ours, theirs)
        same = ours.written.lead == theirs.written.lead and ours.written.opening == theirs.written.opening
        total = len("Yes.") + 1
        if same:
            total += len("<think>\nSix and one.\n</think>\n\n")
        assert spans.bytes_S.sum() == total


def test_a_call_of_tools_is_the_templates_own(reader):
    """Aligned where both write it alike; else the stop tokens alone."""
    call = ({"type": "function", "function": {"name": "add", "arguments": {"a": 1}}},)
    tools = ({"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}},)
    qwen = reader("qwen3")
    side = read(qwen, record("", tool_calls=call, tools=tools))
    pairs, last = VocabularyMap(qwen, qwen), len(side.ids_T) - 1
    assert pairs.pair(side, side).proxy_at_N.tolist() == list(range(last + 1))
    other = replace(side, written=replace(side.written, lead="another way"))
    pairing = pairs.pair(side, other)
    assert pairing.proxy_at_N.tolist() == [*[NONE] * last, last]
    assert len(pairing.chunks_S4) == 0


def test_a_space_that_a_tokenizer_adds_after_a_control_token_is_none_of_the_texts():
    """SentencePiece's prefix space, where the reply follows a control token."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = [
        "<|im_start|>",
        "<|im_end|>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "a",
        "b",
        "\u2581a",
        "\u2581b",
    ]
    model = models.BPE(
        {word: i for i, word in enumerate(words)}, [("\u2581", "a"), ("\u2581", "b")], byte_fallback=True
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(words[:2])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML.replace("role'] + '\n'", "role'] + '<|im_start|>'").replace(
        "assistant\n", "assistant<|im_start|>"
    )
    sentencepiece, byte_level = ByteReader(ChatFormat(tokenizer)), ByteReader(ChatFormat(make_tokenizer()))
    one = record("a b")
    ours, theirs = read(sentencepiece, one), read(byte_level, one)
    assert [sentencepiece.tokens.pieces[i] for i in ours.ids_T] == [b" a", b" b", b"<|im_end|>"]
    assert ours.ends_T.tolist() == [1, 3, 4]
    spans = align(ours, theirs)
    assert spans.proxy_cuts.tolist() == [0, 1, 2, 3]
    assert spans.bytes_S.tolist() == [1, 2, 1]


def test_what_a_normaliser_changes_has_no_boundary_inside(reader):
    """Qwen 3 composes characters (NFC): its one token for e and its accent stands for both of Llama's."""
    one = record("cafe\u0301 x")
    theirs = read(reader("qwen3"), one)
    assert (theirs.ends_T[-2], theirs.ends_T[-1]) == (8, 9)
    assert 5 not in theirs.ends_T[theirs.known_T]  # between e and the accent
    spans = align(read(reader("llama3_1"), one), theirs)
    assert spans.bytes_S.sum() == 9


# -- images ----------------------------------------------------------------------------------------------------------


def test_a_token_goes_to_the_one_of_its_bytes_or_the_first_of_its_path(reader):
    llama, qwen = reader("llama3_1"), reader("qwen3")
    one = record("It is 7.")
    ours, theirs = read(llama, one), read(qwen, one)
    vocabularies = VocabularyMap(llama, qwen)
    pairing = vocabularies.pair(ours, theirs)
    proxy, student = (side.chat.tokenizer.convert_tokens_to_ids for side in (llama, qwen))
    at_7 = theirs.ids_T.tolist().index(student("7"))
    top = np.zeros((len(ours.ids_T), 6), np.int64)
    row = [proxy(name) for name in ("7", "12", "1", "\u0120seven", "<|eot_id|>", "<|end_header_id|>")]
    top[pairing.proxy_at_N[at_7]] = row
    images = vocabularies.images(pairing, theirs, top)[at_7].tolist()
    assert images == [student("7"), student("1"), student("1"), student("\u0120seven"), qwen.chat.stop_token_id, NONE]


def test_the_students_own_token_is_the_image_of_its_bytes(reader):
    """Llama 2 has two tokens for a line break's byte, of which it writes one."""
    llama, qwen = reader("llama2"), reader("qwen3")
    one = record("a\nb")
    ours, theirs = read(qwen, one), read(llama, one)
    vocabularies = VocabularyMap(qwen, llama)
    pairing = vocabularies.pair(ours, theirs)
    top = np.repeat(ours.ids_T[:, None], 2, 1)
    for place, row in enumerate(vocabularies.images(pairing, theirs, top)):
        if pairing.proxy_at_N[place] != NONE:
            assert row.tolist() == [theirs.ids_T[place]] * 2


def test_what_would_merge_with_the_text_before_has_no_image(reader):
    """After `t` the student writes `them` with its `the`."""
    student = ByteReader(ChatFormat(make_tokenizer()))
    names = {piece: i for i, piece in enumerate(student.tokens.pieces)}
    vocabularies = VocabularyMap(reader("qwen3"), student)
    assert student.ids_within("them")[0] == names[b"the"]
    assert vocabularies._first((names[b"t"],), b"hem") == NONE
    assert vocabularies._first((names[b"t"],), b"op") == names[b"o"]
    assert vocabularies._first((), b"hem") == student.ids_within("hem")[0]
    assert vocabularies._first((), "\u00e9".encode()[:1]) == NONE  # half a character


@pytest.mark.parametrize(("proxy", "student"), [*PAIRS, ("gemma3", "llama2"), ("gptoss", "deepseek_v3")])
def test_paths_are_what_the_student_makes_of_the_whole_text(reader, proxy, student):
    """The window before a token against all the text before it, for tokens that the student lacks."""
    ours, theirs = reader(proxy), reader(student)
    vocabularies = VocabularyMap(ours, theirs)
    lacking = np.flatnonzero((vocabularies.same_V == NONE) & ~ours.tokens.control_V).tolist()
    rng, checked = random.Random(7), 0
    for text in (PROSE, SAMPLE, "The committee decided on 12 items; see `x_train[0]` and https://a.b/c?d=1."):
        one = record(text)
        side = read(theirs, one)
        pairing = vocabularies.pair(read(ours, one), side)
        for place in np.flatnonzero(pairing.proxy_at_N[:-1] != NONE):
            before = text.encode()[: max(side.ends_T[place - 1], 0) if place else 0]
            for token_id in rng.sample(lacking, 4):
                piece = ours.tokens.pieces[token_id]
                found = vocabularies.path(side, int(place), token_id)
                assert found == path_by_the_whole_text(theirs, side.ids_T[:place].tolist(), before, piece)
                checked += found != NONE
    assert checked > 100


def path_by_the_whole_text(student: ByteReader, so_far: list[int], before: bytes, piece: bytes) -> int:
    try:
        ids = student.chat.completion_ids((before + piece).decode(), stopped=False)
    except UnicodeDecodeError:
        return NONE
    path = ids[len(so_far) :]
    cut_so = ids[: len(so_far)] == so_far and student.bytes_of(path) == piece
    return path[0] if cut_so and path else NONE


@pytest.mark.parametrize(("first", "second"), permutations(["llama3_1", "qwen3", "llama2"], 2))
def test_images_have_the_bytes_of_the_token_or_begin_them(reader, first, second):
    ours, theirs = reader(first), reader(second)
    same_V = VocabularyMap(ours, theirs).same_V
    for token_id in np.flatnonzero(same_V != NONE)[::37]:
        assert (
            ours.tokens.pieces[token_id] == theirs.tokens.pieces[same_V[token_id]]
            or token_id == ours.chat.stop_token_id
        )
