"""TRL's own trainer, unchanged, learning from the service: it takes the proxy for a `vllm serve` of its teacher."""

from __future__ import annotations

import pytest
import torch

from proxykd.models.batching import collate
from proxykd.models.loading import load_scorer
from proxykd.text.tokenizer import load_tokenizer

pytest.importorskip("trl", reason="TRL is not installed: make .venv/bench")

WORDS = ("the red dog", "a small cat", "one old man", "my blue car")
STEPS, BATCH = 40, 8


def distance(run, student) -> float:
    """KL from the aligned proxy to the student in nats a token, on the full vocabulary, over texts of neither."""
    prompts, completions = [[1, 40 + i, 60 + i] for i in range(16)], [[70 + i, 80, 90 + i, 2] for i in range(16)]
    [adapter] = run.adapters.glob("r02-*")
    proxy = load_scorer(run.models / "proxy", run.config().proxy, adapter=adapter, trainable=False)
    with torch.no_grad():
        proxy_NV = proxy.head().logits(proxy.hidden(collate(prompts, completions))).double().log_softmax(-1)
        rows = torch.tensor([[*p, *c] for p, c in zip(prompts, completions, strict=True)])
        student_NV = student(rows).logits[:, 2:-1].flatten(0, 1).double().log_softmax(-1)
    return float((proxy_NV.exp() * (proxy_NV - student_NV)).sum(1).mean())


@pytest.mark.parametrize("engine", ["merged"], indirect=True, scope="module")
def test_trls_server_distillation_brings_its_student_nearer_to_the_aligned_proxy(engine, url, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl.experimental.server_distillation import ServerDistillationConfig, ServerDistillationTrainer

    run, _, _ = engine
    student = AutoModelForCausalLM.from_pretrained(run.models / "student", dtype=torch.float32)
    before = distance(run, student)
    config = ServerDistillationConfig(
        output_dir=str(tmp_path), teacher_model_server_url=url, beta=0.0, loss_top_k=20, max_steps=STEPS,
        per_device_train_batch_size=BATCH, learning_rate=3e-3, lr_scheduler_type="constant", max_completion_length=12,
        use_cpu=True, seed=1, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": words} for words in WORDS * BATCH])
    trainer = ServerDistillationTrainer(student, config, data, processing_class=load_tokenizer(run.models / "student"))
    assert trainer.teacher_client.model.startswith(f"{run.id}-r02-")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    after = distance(run, student)
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}, true KL {before:.2f} -> {after:.2f} nats a token")
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert after < 0.8 * before
