"""Every family's quirks, from its chat template to its head: what is trained is what transformers itself computes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from proxykd.config import LoraConfig, ModelConfig
from proxykd.losses.sequence_losses import dpo
from proxykd.models.batching import collate
from proxykd.models.loading import initialise, load_scorer, merge_adapter, save_adapter, stop_token_ids
from proxykd.models.parallel import full_state
from proxykd.text.chat import ChatFormat
from proxykd.text.tokenizer import load_tokenizer
from proxykd.training.sampling import Room, sample_completions
from tests.families import FAMILIES, make

USER = ({"role": "user", "content": "the red dog?"},)
SYSTEM = ({"role": "system", "content": "be brief"}, *USER)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(the family, its model as a run keeps it: with one layer dropped)."""
    folder = tmp_path_factory.mktemp(request.param)
    source = make(request.param, folder / "source")
    config = ModelConfig(source=str(source), dtype="float32", drop_layers=(1,), lora=LoraConfig(rank=4, alpha=8))
    return FAMILIES[request.param], config, initialise(config, folder / "model")


def conversation(family, model):
    chat = ChatFormat(load_tokenizer(model))
    return chat, chat.prompt_ids(SYSTEM), chat.completion_ids("a blue moon")


def plain(directory):
    """Eager attention leaves nothing of a config out."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


def reference_logps(model, prompt, completion):
    """By transformers' own logits, without our head or scorer."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        return model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def test_a_conversation_reads_as_its_family_writes_it(family):
    facts, config, model = family
    chat, prompt, completion = conversation(facts, model)
    rendered, published = chat.tokenizer.decode(prompt), load_tokenizer(config.source)
    assert "be brief" in rendered
    assert rendered.index("be brief") < rendered.index("the red dog?")
    assert completion[-1] == chat.stop_token_id == chat.tokenizer.convert_tokens_to_ids(facts.stop)
    assert rendered.count(facts.bos) == 1 if facts.bos else True
    assert published.chat_template == chat.tokenizer.chat_template  # fitted again, it stays


def test_the_students_template_answers_others_as_it_answers_us(family):
    """Whoever loads the folder with transformers or vLLM alone: no options, the same prompt."""
    facts, _, model = family
    from transformers import AutoTokenizer

    _, prompt, _ = conversation(facts, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.apply_chat_template(list(SYSTEM), tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(text, add_special_tokens=False) == prompt
    if "<think>" in facts.special:
        assert text.endswith("<think>\n\n</think>\n\n")


def test_every_stop_token_is_known_and_the_turns_own_comes_first(family):
    facts, _, model = family
    tokenizer = load_tokenizer(model)
    expected = dict.fromkeys(tokenizer.convert_tokens_to_ids(token) for token in (facts.stop, facts.eos))
    assert stop_token_ids(plain(model)) == list(expected)


def test_scores_are_those_of_transformers_with_padding_cut(family):
    facts, config, model = family
    _, prompt, completion = conversation(facts, model)
    scorer = load_scorer(model, config)
    expected = reference_logps(plain(model), prompt, completion)
    assert expected.shape[1] == scorer.vocabulary
    found = scorer.score(collate([prompt], [completion]), top_k=5)
    labels = torch.tensor(completion)[:, None]
    torch.testing.assert_close(found.token_logps_N, expected.gather(1, labels)[:, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.top.logps_NK, expected.topk(5).values, atol=1e-5, rtol=1e-4)


def test_rows_of_the_embedding_that_stand_for_no_token_are_cut(family):
    facts, config, model = family
    whole, cut = plain(config.source), plain(model)
    tokens = len(load_tokenizer(model))
    for kept, of in ((cut.get_input_embeddings(), whole.get_input_embeddings()), (cut.lm_head, whole.lm_head)):
        assert of.weight.shape[0] == tokens + facts.padded
        assert torch.equal(kept.weight, of.weight[:tokens])
    assert cut.config.vocab_size == tokens


def test_samples_are_of_the_tokenizers_words_and_end_with_a_stop_token(family):
    facts, config, model = family
    _, prompt, _ = conversation(facts, model)
    scorer = load_scorer(model, config)
    stops = set(stop_token_ids(scorer.model))
    drawn = sample_completions(scorer, [prompt] * 200, Room(200, 8), seed=1)
    assert max(map(max, drawn)) < scorer.vocabulary
    for completion in drawn:
        assert not stops & set(completion[:-1])
        assert len(completion) == 8 or completion[-1] in stops
    assert any(len(completion) < 8 for completion in drawn)


def test_a_preference_step_trains_every_layer_and_merges_into_an_ordinary_model(family, tmp_path):
    facts, config, model = family
    _, prompt, chosen = conversation(facts, model)
    scorer = load_scorer(model, config)
    adapted = [p for name, p in scorer.named_parameters() if "lora_" in name]
    optimizer = torch.optim.SGD(adapted, lr=20.0)
    sides = collate([prompt], [chosen]), collate([prompt], [[*chosen[:-1], chosen[0]]])
    reference = [scorer(side).token_logps_N.sum().detach()[None] for side in sides]
    margins = []
    for _ in range(6):
        loss, margin = dpo(*[scorer(side).token_logps_N.sum()[None] for side in sides], *reference, beta=0.1)
        margins.append(margin.item())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert margins[0] == 0.0
    assert margins[-1] > 0.0
    layers = {name.split(".layers.")[1].split(".")[0] for name, p in scorer.named_parameters() if p.grad is not None}
    assert layers == {"0", "1"}
    adapter = save_adapter(scorer.model, full_state(scorer.model, True), tmp_path, "r01", {"round": 1})
    merged = merge_adapter(model, adapter, tmp_path / "merged", "float32")
    assert plain(merged).config.num_hidden_layers == 2
    expected = reference_logps(plain(merged), prompt, chosen)
    found = scorer.score(sides[0]).token_logps_N
    torch.testing.assert_close(found, expected.gather(1, torch.tensor(chosen)[:, None])[:, 0], atol=1e-4, rtol=1e-3)
