"""Completions drawn from a model under training: prompts of any length side by side, each with its own room; seeds,
stop tokens; and the whole distribution, whatever the model's folder recommends."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from proxykd.config import ModelConfig
from proxykd.models.loading import load_scorer
from proxykd.training.sampling import Room, sample_completions

PROMPTS = [[1, 40, 41, 42, 50, 51], [1, 60], [1, 33, 34]]
ROOM = Room(64, 6)
RECOMMENDED = {
    "do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.2, "min_p": 0.9, "typical_p": 0.2,
    "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "repetition_penalty": 5.0, "no_repeat_ngram_size": 1,
    "bad_words_ids": [[i] for i in range(30, 90)], "suppress_tokens": list(range(90, 120)),
    "begin_suppress_tokens": [120, 121], "sequence_bias": [[[125], 50.0]], "forced_bos_token_id": 126,
    "forced_eos_token_id": 127, "min_new_tokens": 5, "max_new_tokens": 2, "max_time": 1e-9, "guidance_scale": 2.0,
    "exponential_decay_length_penalty": [1, 2.0], "renormalize_logits": True, "use_cache": False,
    "return_dict_in_generate": True, "eos_token_id": 2,
}  # fmt: skip
"""Of a generation_config.json: everything that changes what transformers' `generate` draws."""


@pytest.fixture
def scorer(tiny):
    return load_scorer(tiny, ModelConfig(source=str(tiny), dtype="float32"), seed=1)


def sharpen(scorer, by=1e4):
    """Nearly all mass on one token, so that a draw is known beforehand."""
    with torch.no_grad():
        scorer.head().linear.weight.mul_(by)


def by_hand(scorer, prompt, tokens):
    ids = list(prompt)
    for _ in range(tokens):
        hidden = scorer._base().get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state
        ids.append(int(scorer.head().logits(hidden[0, -1:]).argmax()))
    return ids[len(prompt) :]


def until(ids, stop):
    return ids[: ids.index(stop) + 1] if stop in ids else ids


def test_a_rows_room_is_what_its_own_prompt_leaves():
    assert [Room(9).of(prompt) for prompt in PROMPTS] == [3, 7, 6]
    assert [Room(9, 6).of(prompt) for prompt in PROMPTS] == [3, 6, 6]
    with pytest.raises(ValueError, match="9 tokens leaves no room within max_length 9"):
        Room(9).of([1] * 9)


def test_a_long_prompt_takes_no_room_from_the_others_and_no_row_passes_its_own(scorer, monkeypatch):
    """Greedy by hand, each row alone; no position that the model sees is beyond the length."""
    scorer.model.generation_config.eos_token_id = None
    sharpen(scorer)
    positions = []
    seen = scorer.next_logits
    monkeypatch.setattr(
        scorer,
        "next_logits",
        lambda ids, mask, at, cache: (positions.append(int(at.max())), seen(ids, mask, at, cache))[1],
    )
    prompts = [*PROMPTS, [1] * 20]
    drawn = sample_completions(scorer, prompts, Room(24), seed=3)
    assert [len(completion) for completion in drawn] == [18, 22, 21, 4]
    assert drawn == [by_hand(scorer, prompt, 24 - len(prompt)) for prompt in prompts]
    assert max(positions) == 22  # the last token is drawn and not read


def test_a_batch_of_prompts_of_different_lengths_is_drawn_as_each_alone(scorer):
    sharpen(scorer)
    stop = by_hand(scorer, PROMPTS[1], 6)[2]
    scorer.model.generation_config.eos_token_id = [2, stop]
    drawn = sample_completions(scorer, PROMPTS, ROOM, seed=3)
    assert drawn == [until(until(by_hand(scorer, prompt, 6), 2), stop) for prompt in PROMPTS]
    assert len(set(map(len, drawn))) > 1


def test_a_seed_decides_the_draw_and_leaves_the_global_state_alone(scorer):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (sample_completions(scorer, PROMPTS, ROOM, seed=seed) for seed in (5, 5, 6))
    assert first == again != other
    assert torch.equal(torch.rand(1), expected)


def chi_square(scorer, drawn, prompt):
    """Of first tokens against the model's probabilities, the likeliest ten and the rest together."""
    hidden = scorer._base().get_decoder()(input_ids=torch.tensor([prompt])).last_hidden_state
    values, ids = scorer.head().logits(hidden[0, -1:]).softmax(-1)[0].topk(10)
    counts = [sum(completion[0] == token for completion in drawn) for token in ids.tolist()]
    n = len(drawn)
    observed, expected = [*counts, n - sum(counts)], [*(n * values).tolist(), n * (1 - values.sum()).item()]
    return sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))


def test_what_a_models_folder_recommends_changes_no_draw(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps(RECOMMENDED))
    config = ModelConfig(source=str(tiny), dtype="float32")
    plain, recommended = load_scorer(tiny, config, seed=1), load_scorer(folder, config, seed=1)
    assert recommended.model.generation_config.repetition_penalty == 5.0
    prompts = [PROMPTS[1]] * 400
    drawn = sample_completions(recommended, prompts, ROOM, seed=9)
    assert drawn == sample_completions(plain, prompts, ROOM, seed=9)
    assert chi_square(plain, drawn, PROMPTS[1]) < 29.6  # one in a thousand, 10 degrees of freedom


def test_a_model_in_training_is_drawn_from_as_in_evaluation_and_goes_on_training(tiny, scorer):
    """A layer that recomputes its activations keeps no cache while it trains."""
    expected = sample_completions(scorer, PROMPTS, ROOM, seed=5)
    scorer.checkpoint_layers()
    for layer in scorer.layers():
        layer.train()
    modes = [module.training for module in scorer.modules()]
    assert any(modes)
    assert not all(modes)
    assert sample_completions(scorer, PROMPTS, ROOM, seed=5) == expected
    assert [module.training for module in scorer.modules()] == modes


def test_a_completion_ends_with_its_stop_token_or_at_the_limit(scorer):
    sharpen(scorer)
    expected = by_hand(scorer, PROMPTS[0], 6)
    stop = expected[2]
    scorer.model.generation_config.eos_token_id = [2, stop]
    [completion] = sample_completions(scorer, PROMPTS[:1], ROOM, seed=0)
    assert completion == until(expected, stop)
    scorer.model.generation_config.eos_token_id = 2
    [short] = sample_completions(scorer, PROMPTS[:1], Room(8, 6), seed=0)
    assert short == expected[:2]
    assert sample_completions(scorer, [], ROOM, seed=0) == []
