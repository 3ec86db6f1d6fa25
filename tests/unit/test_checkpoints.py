"""A stage that dies goes on from its last whole checkpoint, bit for bit as if it had not died."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from proxykd.models import parallel
from proxykd.models.loading import save_model
from proxykd.models.parallel import Workers, full_state
from proxykd.runs.checkpoints import Checkpoints
from tests.forks import on_ranks
from tests.unit.test_training import LOSSES, make, rows


def take(trainer, loss, steps):
    for number in steps:
        batch = rows(seed=number)
        trainer.step(batch, LOSSES[loss](batch))


@pytest.mark.parametrize("loss", ["sft", "align", "distil"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(tiny, store, loss, method):
    whole = make(tiny, 20, method=method)
    take(whole, loss, range(5))
    checkpoints = Checkpoints(store / "warmup")
    first = make(tiny, 20, method=method)
    take(first, loss, range(2))
    checkpoints.save(2, {"trainer": first.state()})
    torch.manual_seed(99)
    second = make(tiny, 20, method=method)
    second.restore(checkpoints.latest()["trainer"])
    assert second.steps == 2
    take(second, loss, range(2, 5))
    for a, b in zip(whole.state()["moments"], second.state()["moments"], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    expected, found = (full_state(t.scorer.model, trainable_only=False) for t in (whole, second))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_random_state_goes_on_too(tiny, store):
    trainer = make(tiny, 20)
    torch.manual_seed(5)
    Checkpoints(store).save(0, {"trainer": trainer.state()})
    expected = torch.rand(3)
    trainer.restore(Checkpoints(store).latest()["trainer"])
    assert torch.equal(torch.rand(3), expected)


def test_only_the_newest_is_kept_and_none_after_the_stage(store):
    checkpoints = Checkpoints(store)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"step": step})
        checkpoints.forget(before=step)
    assert sorted(p.name for p in store.iterdir()) == ["step-000003.ok", "step-000003.pt"]
    assert checkpoints.latest() == {"step": 3}
    checkpoints.clear()
    assert checkpoints.latest() is None


@pytest.mark.parametrize("torn", ["file", "marker", "no marker"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(store, torn):
    checkpoints = Checkpoints(store)
    checkpoints.save(1, {"step": 1})
    checkpoints.save(2, {"step": 2})  # killed before the old one went
    newest = store / "step-000002.pt"
    match torn:
        case "file":
            newest.write_bytes(newest.read_bytes()[:100])
        case "marker":
            newest.with_suffix(".ok").write_bytes(b'{"sha')
        case "no marker":
            newest.with_suffix(".ok").unlink()
    assert checkpoints.latest() == {"step": 1}


def _worker(mode, tiny, folder):
    workers = Workers.current(mode, torch.device("cpu"))
    whole = make(tiny, 20, workers)
    take(whole, "align", range(4))
    first = make(tiny, 20, workers)
    take(first, "align", range(2))
    state = first.state()
    if dist.get_rank() == 0:
        Checkpoints(folder).save(2, state)
    dist.barrier()
    second = make(tiny, 20, workers)
    second.restore(Checkpoints(folder).latest())
    take(second, "align", range(2, 4))
    expected, found = (full_state(t.scorer.model, trainable_only=True) for t in (whole, second))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_workers_go_on_to_the_bit_too(tiny, tmp_path, mode):
    on_ranks(2, partial(_worker, mode, tiny, tmp_path / "checkpoints"), tmp_path / "ranks")


def test_a_checkpoint_of_two_sharded_workers_serves_one(tiny, tmp_path):
    on_ranks(2, partial(_worker, "fsdp2", tiny, tmp_path / "checkpoints"), tmp_path / "ranks")
    one = make(tiny, 20, Workers())
    one.restore(Checkpoints(tmp_path / "checkpoints").latest())
    take(one, "align", range(2, 4))
    alone = make(tiny, 20)
    take(alone, "align", range(4))
    for a, b in zip(one.parameters, alone.parameters, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def _joined(tensor):
    """A tensor from every worker's own part of it, put together by hand."""
    import torch.distributed as dist

    if not hasattr(tensor, "to_local"):
        return tensor.detach().clone()
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, tensor.detach().to_local())
    return torch.cat(parts)


def _gathering_worker(tiny, folder):
    rank = dist.get_rank()
    held = _Held()
    for method in ("full", "lora"):
        trainer = make(tiny, 20, Workers.current("fsdp2", torch.device("cpu")), method=method)
        take(trainer, "sft", range(2))
        scorer = trainer.scorer
        expected = {name: _joined(value) for name, value in scorer.model.state_dict().items()}
        moments = [{k: _joined(v) for k, v in trainer.optimizer.state[p].items()} for p in trainer.parameters]
        trained, largest = (4 * f(p.numel() for p in trainer.parameters) for f in (sum, max))
        with held:
            state = trainer.state()
        peaks = [held.peak]
        with held:
            saved = full_state(scorer.model, trainable_only=method == "lora", keep=rank == 0)
        peaks.append(held.peak)
        if rank:
            assert (state, saved) == (None, {})
            assert peaks == [largest, largest], "one tensor at a time"
            continue
        assert peaks[0] == 3 * trained, "weights and both moments; Adam's counts are copied"
        assert peaks[1] == trained
        for found, whole in zip(state["moments"], moments, strict=True):
            assert all(torch.equal(found[name], whole[name]) for name in whole)
        assert saved.keys() == {name for name in expected if method == "full" or "lora_" in name}
        assert all(torch.equal(value, expected[name]) for name, value in saved.items())
        if method == "full":
            folder.mkdir()
            save_model(scorer.model, tiny, folder, saved)
            assert trained < (folder / "model.safetensors").stat().st_size < trained + 20_000
            assert all(torch.equal(v, expected[k]) for k, v in load_file(folder / "model.safetensors").items())


class _Held:
    """Bytes of the tensors that were made whole and are still held, and the most there were while it is entered."""

    def __enter__(self):
        self.bytes = self.peak = 0
        self._whole = parallel.whole
        parallel.whole = self._count

    def __exit__(self, *_):
        parallel.whole = self._whole

    def _count(self, tensor):
        found = self._whole(tensor)
        self._add(found.nbytes)
        weakref.finalize(found, self._add, -found.nbytes)
        return found

    def _add(self, size):
        self.bytes += size
        self.peak = max(self.peak, self.bytes)


def test_of_sharded_workers_the_first_alone_holds_what_is_gathered(tiny, tmp_path):
    """Checkpoints and saved models are what the parts are, joined by hand; the other worker holds one tensor."""
    on_ranks(2, partial(_gathering_worker, tiny, tmp_path / "model"), tmp_path / "ranks")


def test_a_checkpoint_is_mapped_and_what_is_restored_of_it_a_copy(tiny, store):
    def mapped():
        return "step-000002.pt" in Path("/proc/self/maps").read_text()

    trainer = make(tiny, 20)
    take(trainer, "sft", range(2))
    checkpoints = Checkpoints(store)
    checkpoints.save(2, {"trainer": trainer.state()})
    state = checkpoints.latest()
    assert mapped()
    trainer.restore(state["trainer"])
    del state
    gc.collect()
    assert not mapped()
