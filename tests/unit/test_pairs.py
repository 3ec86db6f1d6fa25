"""Samples become pairs: each row asks for its own room, and what ended by length is counted, kept or dropped."""

from __future__ import annotations

import pytest

from actors.data.engine_shards import Sampler
from actors.engine.proxy_engine import Generation
from proxykd.config import AlignmentConfig
from proxykd.data.pairs import count_pairs, read_pairs, similarity, write_pairs
from proxykd.errors import CorpusError
from proxykd.text.seeds import sample_seed
from proxykd.training.sampling import Room

STOP = 2
ROWS = [{"id": f"r{n}", "prompt_ids": [1] * n, "completion_ids": [50, 51, STOP]} for n in (700, 12, 300)]


class Engine:
    """Notes what it is asked, and fills every room without an end."""

    def __call__(self, method, prompts, max_tokens, seeds):
        assert method == "generate"
        self.asked = prompts, max_tokens, seeds
        return [Generation([60] * most, False, "a") for most in max_tokens]


@pytest.mark.parametrize(
    ("room", "expected"),
    [(Room(1024), [324, 1012, 724]), (Room(1024, 512), [324, 512, 512]), (Room(701), [1, 689, 401])],
)
def test_a_shards_longest_prompt_takes_nothing_from_the_others(room, expected):
    engine = Engine()
    drawn = Sampler(engine, 3, 7, room)(ROWS)
    prompts, max_tokens, seeds = engine.asked
    assert max_tokens == expected
    assert prompts == [row["prompt_ids"] for row in ROWS]
    assert [len(generation.token_ids) for _, generation in drawn] == expected
    assert seeds == [seed for seed, _ in drawn] == [sample_seed(7, 3, row["id"]) for row in ROWS]


SAMPLES = [([60, STOP], True), ([60, 61, 62], False), ([], True), ([50, 51, STOP], True), ([50, 51], False)]


def shard(tmp_path, truncated, samples=SAMPLES, name="shard-00000.parquet"):
    rows = [
        {**ROWS[1], "id": str(i), "rejected_ids": ids, "rejected_stopped": stopped, "adapter": "a", "seed": i}
        for i, (ids, stopped) in enumerate(samples)
    ]
    write_pairs(tmp_path / name, rows, AlignmentConfig(truncated_samples=truncated))
    return tmp_path / name


@pytest.mark.parametrize(
    ("truncated", "kept", "dropped"),
    [("keep", ["0", "1", "4"], {"empty": 1, "equal": 1}), ("drop", ["0"], {"empty": 1, "equal": 1, "truncated": 2})],
)
def test_samples_that_ended_by_length_are_counted_and_kept_or_dropped(tmp_path, truncated, kept, dropped):
    first = shard(tmp_path, truncated)
    second = shard(tmp_path, truncated, [([70, STOP], True), ([70], False)], "shard-00001.parquet")
    assert [row["id"] for row in read_pairs(first)] == kept
    counts = count_pairs([first, second])
    more = {"truncated": dropped["truncated"] + 1} if truncated == "drop" else {}
    assert counts["dropped"] == dropped | more
    assert (counts["samples"], counts["truncated"]) == (7, 3)
    assert counts["pairs"] == len(kept) + (1 if truncated == "drop" else 2)
    assert counts["samples"] == counts["pairs"] + sum(counts["dropped"].values())


def test_a_round_that_keeps_no_pair_says_which_settings_would_keep_some(tmp_path):
    path = shard(tmp_path, "drop", [([60, 61], False)])
    with pytest.raises(
        CorpusError, match=r"'truncated': 1.*alignment.max_new_tokens.*alignment.truncated_samples=keep"
    ):
        count_pairs([path])


def test_sides_that_are_nearly_the_same_are_dropped_where_that_is_asked(tmp_path):
    assert similarity([1, 1, 2, 3], [1, 2, 2, 4]) == pytest.approx(2 * 2 / 8)
    assert similarity([1, 2], [2, 1]) == 1.0
    assert similarity([1], [2, 3]) == 0.0
    row = {**ROWS[1], "adapter": "a", "seed": 0, "rejected_stopped": True}  # 50, 51, stop
    rows = [{**row, "id": str(i), "rejected_ids": ids} for i, ids in enumerate([[50, 60, STOP], [60, STOP], [51, 50]])]
    dropped = write_pairs(tmp_path / "shard-00000.parquet", rows, AlignmentConfig(max_similarity=0.5))
    assert dropped == {"similar": 2}  # 4/6 and 4/5 of the tokens; 2/5 of the other
    assert [row["id"] for row in read_pairs(tmp_path / "shard-00000.parquet")] == ["1"]
