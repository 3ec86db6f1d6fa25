"""Packing: size, accuracy, mass, and the refusal of labels that belong to something else."""

from __future__ import annotations

import numpy as np
import pytest

from proxykd.data.label_tensors import as_top_k
from proxykd.data.soft_labels import (
    LabelSource,
    SoftLabels,
    decode_logps,
    encode_logps,
    pack,
    read_source,
    require,
    require_match,
    unpack,
    write_label_shard,
)
from proxykd.errors import IntegrityError
from proxykd.evaluation.soft_label_statistics import label_statistics
from proxykd.runs.storage import verify_shard
from proxykd.text.tokenising import ids_hash


def labels(tokens, vocabulary, top_k=10, seed=0, sharpness=4.0, record_id="r"):
    """Labels of a real softmax: float64 log-probs of random logits."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.standard_normal((tokens, 400))
    logps = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-logps, axis=-1)[:, :top_k]
    top = np.take_along_axis(logps, order, axis=-1)
    tail = np.log(np.maximum(1 - np.exp(top).sum(-1), 1e-9))
    ids = generator.integers(0, vocabulary, (tokens, top_k))
    ids[0, 0] = vocabulary - 1
    return SoftLabels(record_id, ids_hash(list(range(tokens))), ids, top, tail, top[:, 3], float(top[:, 3].sum()))


def as_row(label, vocabulary):
    return {
        "record_id": label.record_id,
        "token_hash": label.token_hash,
        "tokens": len(label.token_logps_T),
        "sequence_logp": label.sequence_logp,
        "packed": pack(label, vocabulary),
    }


@pytest.mark.parametrize("vocabulary", [320, 49152, 151936, 262144])
def test_round_trip(vocabulary):
    label = labels(33, vocabulary)
    source = LabelSource("a", "t", vocabulary, 10)
    read = unpack(as_row(label, vocabulary), source)
    assert np.array_equal(read.top_ids_TK, label.top_ids_TK)
    assert np.abs(read.top_logps_TK - label.top_logps_TK).max() < 2e-3
    assert np.abs(read.token_logps_T - label.token_logps_T).max() < 2e-3
    assert np.abs(read.tail_logmass_T - label.tail_logmass_T).max() < 2e-3
    mass = np.exp(read.top_logps_TK).sum(-1) + np.exp(read.tail_logmass_T)
    assert np.abs(mass - 1).max() < 1e-12


@pytest.mark.parametrize("sharpness", [0.01, 1.0, 30.0])
def test_no_mass_above_one_after_reading(sharpness):
    label = labels(200, 49152, sharpness=sharpness)
    read = unpack(as_row(label, 49152), LabelSource("a", "t", 49152, 10))
    assert np.exp(read.top_logps_TK).sum(-1).max() <= 1 + 1e-12


def test_all_mass_on_the_top_leaves_an_empty_tail():
    label = labels(2, 400, top_k=4)
    certain = SoftLabels("r", "h", label.top_ids_TK, np.log(np.array([[1.0, 0, 0, 0]] * 2) + 1e-300),
                         np.full(2, -np.inf), np.zeros(2), 0.0)  # fmt: skip
    read = unpack(as_row(certain, 400), LabelSource("a", "t", 400, 4))
    assert np.isneginf(read.tail_logmass_T).all()
    assert np.exp(read.top_logps_TK).sum(-1) == pytest.approx([1.0, 1.0])


def test_codes_are_within_half_a_step_and_saturate():
    values = -np.linspace(0, 127.9, 100_001)
    assert np.abs(decode_logps(encode_logps(values)) - values).max() <= 1 / 1024 + 1e-12
    assert decode_logps(encode_logps(np.array([-500.0])))[0] == pytest.approx(-65534 / 512)


@pytest.mark.parametrize(("vocabulary", "limit"), [(49152, 46.0), (151936, 50.0)])
def test_bytes_a_token_on_disk(tmp_path, vocabulary, limit):
    shard = [labels(60, vocabulary, seed=i, record_id=f"record-{i:06d}") for i in range(64)]
    path = tmp_path / "shard-00000.parquet"
    write_label_shard(path, shard, LabelSource("r16-abcdef01", "0123456789abcdef", vocabulary, 10))
    assert path.stat().st_size / (60 * 64) <= limit


def test_labels_of_another_source_or_record_are_refused(tmp_path):
    source = LabelSource("r03-aaaaaaaa", "tok", 400, 10)
    path = tmp_path / "shard-00000.parquet"
    write_label_shard(path, [labels(5, 400)], source)
    assert read_source(path) == source
    require(path, source)
    for other in (
        LabelSource("r02-bbbbbbbb", "tok", 400, 10),
        LabelSource("r03-aaaaaaaa", "other", 400, 10),
        LabelSource("r03-aaaaaaaa", "tok", 400, 5),
    ):
        with pytest.raises(IntegrityError, match="delete it and resume"):
            require(path, other)
    label = labels(5, 400)
    require_match(label, "r", [0, 1, 2, 3, 4])
    for record_id, ids in (("other", [0, 1, 2, 3, 4]), ("r", [0, 1, 2, 3, 9])):
        with pytest.raises(IntegrityError, match="is expected"):
            require_match(label, record_id, ids)


def test_a_damaged_shard_is_refused(tmp_path):
    path = tmp_path / "shard-00000.parquet"
    source = LabelSource("a", "t", 400, 10)
    write_label_shard(path, [labels(5, 400)], source)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(IntegrityError, match="its marker says"):
        verify_shard(path)
    row = as_row(labels(5, 400), 400)
    with pytest.raises(IntegrityError, match="bytes for 5 tokens"):
        unpack({**row, "packed": row["packed"][:-1]}, source)


def test_statistics_are_those_of_the_records(tmp_path):
    source = LabelSource("a", "t", 400, 10)
    parts = [labels(5, 400, seed=1), labels(9, 400, seed=2), labels(2, 400, seed=3)]
    path = tmp_path / "shard-00000.parquet"
    write_label_shard(path, parts, source)
    statistics = label_statistics([path], source, "sequence_sum")
    sums = [p.sequence_logp for p in parts]
    assert statistics.mu == pytest.approx(np.mean(sums))
    assert statistics.gamma == pytest.approx(np.std(sums))
    top1 = np.concatenate([np.exp(p.top_logps_TK[:, 0]) for p in parts])
    assert statistics.mass_at_k["1"] == pytest.approx(top1.mean(), abs=1e-3)
    assert statistics.text_probability == pytest.approx(np.exp(sum(sums) / 16))
    assert sum(statistics.histogram.counts) == 3
    by_token = label_statistics([path], source, "token_mean")
    assert by_token.mu == pytest.approx(np.mean([s / n for s, n in zip(sums, (5, 9, 2), strict=True)]))


def test_as_top_k_joins_records_in_order():
    a, b = labels(3, 400, seed=1), labels(2, 400, seed=2)
    top = as_top_k([a, b])
    assert top.ids_NK.shape == (5, 10)
    assert np.allclose(top.logps_NK[3:].numpy(), b.top_logps_TK, atol=1e-6)
