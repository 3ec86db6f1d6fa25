"""Every family in the real engine: it samples the tokenizer's words, ends at any stop token, and scores as the trainer."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from actors.engine import EngineSpec, ProxyEngine
from proxykd.batching import collate
from proxykd.chat import ChatFormat, load_tokenizer
from proxykd.config import ModelConfig
from proxykd.models import initialise, load_scorer, stop_token_ids
from tests.families import FAMILIES, make

MESSAGES = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "the red dog?"})


@pytest.fixture(scope="module", params=FAMILIES)
def answered(request, tmp_path_factory):
    """(the prompt, its 96 samples, the scores of two of them, the trainer's model)."""
    folder = tmp_path_factory.mktemp(request.param)
    config = ModelConfig(source=str(make(request.param, folder / "source")), dtype="float32", method="full")
    model = initialise(config, folder / "model")
    prompt = ChatFormat(load_tokenizer(model)).prompt_ids(MESSAGES)
    spec = EngineSpec(
        model=str(model), adapters_dir=str(folder), prefix="family", mode="merged", dtype="float32", max_length=160,
        max_seqs=96, max_loras=1, max_lora_rank=8, tensor_parallel=1, gpu_share=0.5, on_gpu=False,
    )  # fmt: skip

    async def ask():
        engine = ProxyEngine(spec)
        try:
            name = spec.adapter_name(None)
            samples = await engine.generate(
                name, [prompt] * 96, max_tokens=24, seeds=list(range(96)), deadline_s=120, temperature=1.0
            )
            chosen = [sample.token_ids for sample in samples[:2]]
            scores = await engine.score(name, [prompt] * 2, chosen, top_k=5, deadline_s=120)
        finally:
            engine.shutdown()
        return samples, scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_LOGGING_LEVEL", "WARNING")
        samples, scores = asyncio.run(ask())
    return prompt, samples, scores, load_scorer(model, config, trainable=False)


def test_samples_are_words_of_the_tokenizer_and_end_with_a_stop_token(answered):
    _, samples, _, scorer = answered
    stops = set(stop_token_ids(scorer.model))
    assert max(max(sample.token_ids) for sample in samples) < scorer.vocabulary
    assert any(sample.stopped for sample in samples)
    for sample in samples:
        assert sample.stopped == (sample.token_ids[-1] in stops)
        assert not stops & set(sample.token_ids[:-1])
        assert sample.stopped or len(sample.token_ids) == 24


def test_scores_are_the_trainers(answered):
    prompt, samples, scores, scorer = answered
    chosen = [sample.token_ids for sample in samples[:2]]
    expected = scorer.score(collate([prompt] * 2, chosen), top_k=5)
    found = np.concatenate([score.token_logps_T for score in scores])
    np.testing.assert_allclose(found, expected.token_logps_N.numpy(), atol=2e-4)
