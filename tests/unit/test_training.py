"""Global normalisation: micro-batches, measured steps and workers leave losses and gradients as they are."""

from __future__ import annotations

import math
import random
from functools import partial

import pytest
import torch

from proxykd.config import AlignmentConfig, DistillationConfig, ModelConfig, TrainConfig
from proxykd.data.soft_labels import SoftLabels
from proxykd.errors import GateError
from proxykd.evaluation.fidelity import score_records
from proxykd.losses.divergences import DENSE_DIVERGENCES, Divergence
from proxykd.losses.sequence_losses import TOP_K_DIVERGENCES
from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer
from proxykd.models.parallel import Workers, full_state
from proxykd.training.stage_losses import (
    AlignmentLoss,
    DenseLoss,
    DistillationLoss,
    SftLoss,
    ShiftLoss,
    pair_logps,
)
from proxykd.training.trainer import Trainer
from tests.forks import on_ranks


def rows(count=7, seed=0, vocabulary=300, top_k=4):
    """Rows that every stage can take: chosen, rejected, reference log-probs, soft labels, trust."""
    generator = random.Random(seed)

    def ids(low, high):
        return [generator.randrange(3, vocabulary) for _ in range(generator.randint(low, high))]

    made = []
    for index in range(count):
        completion = [*ids(1, 9), 2]
        size = len(completion)
        logps = torch.randn(size, vocabulary, generator=torch.Generator().manual_seed(index)).log_softmax(-1).double()
        values, top = logps.topk(top_k)
        labels = SoftLabels(
            str(index),
            "",
            top.numpy(),
            values.numpy(),
            (1 - values.exp().sum(-1)).log().numpy(),
            values[:, 0].numpy(),
            0.0,
        )
        row = {
            "index": index,
            "prompt_key": f"p{index}",
            "prompt_ids": [1, *ids(1, 5)],
            "completion_ids": completion,
            "rejected_ids": [*ids(1, 9), 2],
        }
        row |= {"reference_chosen": -20.0 - index, "reference_rejected": -22.0, "soft_labels": labels}
        row |= {"trust": generator.random(), "length": len(row["prompt_ids"]) + 10}
        made.append(row)
    return made


def make(tiny, micro_batch_tokens, workers=None, method="lora", total_steps=100, **config):
    model = ModelConfig(source=str(tiny), dtype="float32", method=method)
    workers = workers or Workers()
    scorer = workers.place(load_scorer(tiny, model, seed=1))
    if method == "lora":
        for name, parameter in scorer.named_parameters():
            if "lora_B" in name:
                torch.manual_seed(5)
                full = torch.randn(parameter.shape) * 0.05
                with torch.no_grad():
                    if hasattr(parameter, "device_mesh"):
                        from torch.distributed.tensor import distribute_tensor

                        full = distribute_tensor(full, parameter.device_mesh, parameter.placements)
                    parameter.copy_(full)
    return Trainer(scorer, TrainConfig(learning_rate=1e-2, **config), workers, micro_batch_tokens, total_steps)


LOSSES = {
    "sft": lambda batch: SftLoss(batch),
    "align": lambda batch: AlignmentLoss(batch, AlignmentConfig()),
    "align_sum": lambda batch: AlignmentLoss(batch, AlignmentConfig(nll_reduction="sequence_sum")),
    "distil": lambda batch: DistillationLoss(batch, DistillationConfig()),
    "distil_tokens": lambda batch: DistillationLoss(batch, DistillationConfig(kl_reduction="token_sum", alpha=2)),
}


def train(trainer, make_loss, steps=3):
    seen = [trainer.step(batch, make_loss(batch)) for batch in (rows(seed=s) for s in range(steps))]
    return seen, full_state(trainer.scorer.model, trainable_only=True)


class Held(Exception):
    """Raised by a gate to look at the gradient before Adam, which turns rounding near 0 into whole steps."""


def gradients(trainer, make_loss):
    def hold(losses, metrics):
        raise Held

    with pytest.raises(Held):
        trainer.step(rows(), make_loss(rows()), hold)
    taken = [p.grad.clone() for p in trainer.parameters]
    trainer.optimizer.zero_grad(set_to_none=True)
    return taken


@pytest.mark.parametrize(("clip", "scaled"), [(0.01, True), (1e6, False)])
def test_a_gradient_is_clipped_to_the_configs_norm_and_told_as_it_was(tiny, clip, scaled):
    trainer, met = make(tiny, 10_000, gradient_clip=clip), []

    def look(optimizer, *_):
        met.append(sum(float(p.grad.double().square().sum()) for p in trainer.parameters) ** 0.5)

    trainer.optimizer.register_step_pre_hook(look)
    told = trainer.step(rows(), LOSSES["sft"](rows())).grad_norm
    assert told > 0.01
    assert met == [pytest.approx(clip if scaled else told, rel=1e-3)]


@pytest.mark.parametrize("name", LOSSES)
def test_micro_batches_change_neither_losses_nor_gradients(tiny, name):
    whole, split = make(tiny, 10_000), make(tiny, 20)
    for a, b in zip(gradients(whole, LOSSES[name]), gradients(split, LOSSES[name]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(a.abs().max()), rtol=1e-4)
    for a, b in zip(train(whole, LOSSES[name])[0], train(split, LOSSES[name])[0], strict=True):
        assert a.losses == pytest.approx(b.losses, rel=1e-5)
        assert a.grad_norms == pytest.approx(b.grad_norms, rel=1e-4)


def test_measuring_the_terms_gives_the_same_gradient(tiny):
    measured, plain = make(tiny, 64, grad_norms_every=1), make(tiny, 64, grad_norms_every=1000)
    plain.steps = 1
    for a, b in zip(gradients(measured, LOSSES["align"]), gradients(plain, LOSSES["align"]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(a.abs().max()), rtol=1e-4)
    [step] = train(measured, LOSSES["align"], steps=1)[0]
    assert step.grad_norms.keys() == {"nll", "dpo"}
    assert train(plain, LOSSES["align"], steps=1)[0][0].grad_norm == pytest.approx(step.grad_norm, rel=1e-4)


def test_units_are_those_of_the_design(tiny):
    """NLL a token, DPO a pair, student NLL and weighted KL a sequence: against sums over single rows."""
    scorer = make(tiny, 64).scorer
    batch = rows()
    one_by_one = [SftLoss([row])(scorer, [row])[0]["nll"].item() * len(row["completion_ids"]) for row in batch]
    tokens = sum(len(row["completion_ids"]) for row in batch)
    assert SftLoss(batch)(scorer, batch)[0]["nll"].item() == pytest.approx(sum(one_by_one) / tokens, rel=1e-5)

    assert SftLoss(batch, by_sequence=True)(scorer, batch)[0]["nll"].item() == pytest.approx(
        sum(one_by_one) / len(batch), rel=1e-5
    )

    config = DistillationConfig(alpha=100.0)
    terms, metrics = DistillationLoss(batch, config)(scorer, batch)
    assert terms["nll"].item() == pytest.approx(sum(one_by_one) / len(batch), rel=1e-5)
    weighted = 0.0
    total_kl = 0.0
    for row in batch:
        alone = {**row, "trust": 1.0}
        kl_mean = DistillationLoss([alone], DistillationConfig(alpha=1.0))(scorer, [alone])[0]["kl"].item()
        weighted += row["trust"] * kl_mean
        total_kl += kl_mean * len(row["completion_ids"])
    assert terms["kl"].item() == pytest.approx(100.0 * weighted / len(batch), rel=1e-4)
    assert metrics["sequence_kl"] == pytest.approx(total_kl, rel=1e-4)
    by_token = DistillationLoss(batch, DistillationConfig(alpha=1.0, kl_reduction="token_sum", trust="none"))
    flat = [{**row, "trust": 1.0} for row in batch]
    assert by_token(scorer, flat)[0]["kl"].item() == pytest.approx(total_kl / tokens, rel=1e-4)
    assert set(TOP_K_DIVERGENCES) == {"tail", "truncated", "proxy_renormalised", "both_renormalised"}


@pytest.mark.parametrize("name", DENSE_DIVERGENCES)
def test_a_white_box_loss_is_the_token_mean_over_whole_distributions_whatever_the_micro_batches(tiny, name):
    teacher = make(tiny, 64).scorer.eval()
    whole, split = (make(tiny, size, method="full") for size in (10_000, 20))
    for trainer in (whole, split):
        torch.manual_seed(8)
        with torch.no_grad():
            for parameter in trainer.parameters:
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape))

    def loss(batch):
        return DenseLoss(batch, teacher, Divergence(name, 1.5))

    values, tokens = [], 0
    for row in rows():
        batch = collate([row["prompt_ids"]], [row["completion_ids"]])
        with torch.no_grad():
            logits = [scorer.head().logits(scorer.hidden(batch)) for scorer in (teacher, whole.scorer)]
        values.append(Divergence(name, 1.5)(*logits).sum().item())
        tokens += len(row["completion_ids"])
    assert loss(rows())(whole.scorer, rows())[0]["divergence"].item() == pytest.approx(sum(values) / tokens, rel=1e-5)
    for a, b in zip(gradients(whole, loss), gradients(split, loss), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(a.abs().max()), rtol=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_shift_loss_is_the_kl_from_the_start_moved_from_the_base_to_the_labels(tiny):
    """By loops over whole distributions, whatever the micro-batches; a frozen model takes no gradient."""
    base, untaught = make(tiny, 64).scorer, make(tiny, 64, method="full").scorer
    whole, split = (make(tiny, size, method="full") for size in (10_000, 20))
    torch.manual_seed(8)
    for parameters in zip(whole.parameters, split.parameters, strict=True):
        factor = 1 + 0.1 * torch.randn(parameters[0].shape)
        with torch.no_grad():
            for parameter in parameters:
                parameter.mul_(factor)
    config = DistillationConfig(alpha=1.0, kl_reduction="token_sum")

    def loss(batch):
        return ShiftLoss(batch, config, base, untaught)

    total = 0.0
    for row in rows():
        batch = collate([row["prompt_ids"]], [row["completion_ids"]])
        with torch.no_grad():
            q, q0, b = (
                scorer.head().logits(scorer.hidden(batch)).double().softmax(-1)
                for scorer in (whole.scorer, untaught, base)
            )
        labels = row["soft_labels"]
        for t, ids in enumerate(labels.top_ids_TK):
            kept = [[float(p[t, i]) for i in ids] for p in (q, q0, b)]
            (q_t, q0_t, b_t), p_t = ([*k, 1 - sum(k)] for k in kept), list(map(math.exp, labels.top_logps_TK[t]))
            moved = [s * p / f for s, p, f in zip(q0_t, [*p_t, 1 - sum(p_t)], b_t, strict=True)]
            target = [value / sum(moved) for value in moved]
            kl = sum(a * math.log(a / c) for a, c in zip(target, q_t, strict=True))
            total += row["trust"] * kl
    tokens = sum(len(row["completion_ids"]) for row in rows())
    assert loss(rows())(whole.scorer, rows())[0]["kl"].item() == pytest.approx(total / tokens, rel=1e-4)
    for a, b in zip(gradients(whole, loss), gradients(split, loss), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * float(a.abs().max()), rtol=1e-4)
    assert all(parameter.grad is None for scorer in (base, untaught) for parameter in scorer.parameters())


def test_a_reference_of_the_same_weights_and_batch_gives_margins_of_exactly_zero(tiny):
    scorer = make(tiny, 64).scorer
    batch = rows()
    with torch.no_grad():
        chosen, rejected = pair_logps(scorer, batch)
    anchored = [
        {**row, "reference_chosen": c, "reference_rejected": r}
        for row, c, r in zip(batch, chosen.tolist(), rejected.tolist(), strict=True)
    ]
    loss = AlignmentLoss(anchored, AlignmentConfig())
    terms, _ = loss(scorer, anchored)
    assert loss.largest_margin == 0.0
    assert terms["dpo"].item() == pytest.approx(0.693147, abs=1e-5)


def test_the_gate_sees_the_first_batch_before_anything_moves(tiny):
    trainer = make(tiny, 64)
    before = full_state(trainer.scorer.model, trainable_only=True)
    before = {k: v.clone() for k, v in before.items()}

    def gate(losses, metrics):
        raise GateError("broken on purpose")

    with pytest.raises(GateError, match="on purpose"):
        trainer.step(rows(), LOSSES["align"](rows()), gate)
    after = full_state(trainer.scorer.model, trainable_only=True)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_loss_that_is_not_finite_is_refused(tiny):
    trainer = make(tiny, 64)
    batch = [{**row, "reference_chosen": float("nan")} for row in rows()]
    with pytest.raises(GateError, match="lower learning_rate"):
        trainer.step(batch, LOSSES["align"](batch))


def _worker(mode, tiny):
    workers = Workers.current(mode, torch.device("cpu"))
    trainer = make(tiny, 20, workers)
    trainer.scorer.checkpoint_layers()
    steps, state = train(trainer, LOSSES["align"])
    held_out = score_records(trainer.scorer, rows(5, seed=9), workers, 20)
    return {"losses": [s.losses for s in steps], "norms": [s.grad_norm for s in steps], "state": state,
            "nll": held_out.nll}  # fmt: skip


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_two_workers_train_as_one(tiny, tmp_path, mode):
    """The loss curve to 1e-4 and the weights, for replicas and for sharded layers that are recomputed, on gloo."""
    one = make(tiny, 20)
    steps, state = train(one, LOSSES["align"])
    [two, _] = on_ranks(2, partial(_worker, mode, tiny), tmp_path / "ranks")
    for a, b in zip(steps, two["losses"], strict=True):
        assert a.losses == pytest.approx(b, abs=1e-4)
    assert [s.grad_norm for s in steps] == pytest.approx(two["norms"], rel=1e-3)
    for key, value in state.items():
        torch.testing.assert_close(two["state"][key], value, atol=2e-4, rtol=1e-3)
    assert two["nll"] == pytest.approx(score_records(one.scorer, rows(5, seed=9), Workers(), 20).nll, abs=2e-3)
