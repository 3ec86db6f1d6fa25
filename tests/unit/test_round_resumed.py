"""A round that goes on after a death: its references are of the micro-batches that it now trains on, and of its start."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from proxykd.training.loops import align as align_module
from tests.one_round import Killed, Round


@pytest.fixture
def passes(monkeypatch):
    """How often references were made."""
    made = mock.Mock(wraps=align_module._reference_pass)
    monkeypatch.setattr(align_module, "_reference_pass", made)
    return made


@pytest.mark.parametrize("steps", [0, 2])
def test_references_are_made_again_for_other_micro_batches_from_the_rounds_start(tiny, tmp_path, passes, steps):
    killed, whole = Round(tiny, tmp_path / "killed"), Round(tiny, tmp_path / "whole")
    with pytest.raises(Killed):
        killed.train(10_000, steps)
    result = killed.train(80)
    assert passes.call_count == 2
    assert result.step0_margin_max_abs == 0.0
    whole.train(80)
    assert torch.equal(killed.references, whole.references)


def test_references_are_kept_where_nothing_changed(tiny, tmp_path, passes):
    killed = Round(tiny, tmp_path)
    with pytest.raises(Killed):
        killed.train(80, 2)
    before = killed.references
    assert killed.train(80).step0_margin_max_abs == 0.0
    assert passes.call_count == 1
    assert torch.equal(killed.references, before)
