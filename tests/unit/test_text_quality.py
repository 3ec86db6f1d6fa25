"""Flags on texts as teachers write them, good and bad."""

from __future__ import annotations

import pytest

from proxykd.collection.text_quality import flags_of

PROSE = (
    "The sky is blue because air scatters short waves more than long ones, so that blue light reaches us from every "
    "side while the red goes straight on; at dusk the way through the air is longer, and what is left is red."
)
TABLE = "| name | value |\n" + "-" * 60 + "\n| a | 1 |\n| b | 2 |"
POEM = "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream."


@pytest.mark.parametrize(
    ("text", "finish_reason", "flags"),
    [
        (PROSE, "stop", []),
        (TABLE, "stop", []),
        (POEM, "stop", []),
        ("Paris.", "stop", []),
        ("He said: I'm sorry, but I can't come. Then he left.", "stop", []),
        ("", "stop", ["empty"]),
        (" \n\t", "length", ["empty"]),
        ("", "content_filter", ["empty", "refusal"]),
        (PROSE, "length", ["truncated"]),
        ("I'm sorry, but I can't help with that.", "stop", ["refusal"]),
        ("I\u2019m really sorry, but I cannot assist with this request.", "stop", ["refusal"]),
        ("Sorry, I can't do that.", "stop", ["refusal"]),
        ("As an AI language model, I don't have personal opinions.", "stop", ["refusal"]),
        ("I cannot provide instructions for that.", "stop", ["refusal"]),
        ("I can't wait to show you how this works!", "stop", []),
        ("I am unable to comply.", "stop", ["refusal"]),
        ("the answer is in the box and " * 12, "length", ["truncated", "looping"]),
        ("no " * 30, "stop", ["looping"]),
        ("a" * 200, "stop", ["looping"]),
        ("Caf\ufffd au lait", "stop", ["encoding"]),
        ("CafÃ© au lait", "stop", ["encoding"]),
        ("It\u2019s fine, \u201creally\u201d \u2014 na\xefve caf\xe9", "stop", []),
        ("Itâ€™s broken", "stop", ["encoding"]),
        ("São João and Ã alone", "stop", []),
    ],
)
def test_flags(text, finish_reason, flags):
    assert flags_of(text, finish_reason) == flags
