"""The miniature's world: four small models of one's own training, and prompts.

    python configs/miniature/make.py [FOLDER] [--world NAME] [--seeds 1 2 3] [--models teacher proxy student]

A "voice" is a probabilistic grammar of short descriptions: which words follow depends on the noun, the occasion and
what was said before, by tables that are drawn once for each voice. The teacher speaks a voice of its own; the open
teacher one that lies between it and another; proxy and student have heard four other voices, mixed, as open models
have read the web. So every model knows the language, and none but the teacher its voice.

FOLDER is runs/miniature if it is not named. Every table of another --world is drawn anew. With --seeds, each of them
has prompts of its own, prompts-SEED.jsonl: what a study that names {seed} in corpus.prompts takes. The prompts that
are left, unlabelled.jsonl and unlabelled-SEED.jsonl, are for corpus.unlabelled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = ("describe", "tell me about", "what of", "say something on", "how is")
NOUNS = (
    "river", "harbour", "tower", "garden", "market", "bridge", "forest", "island", "valley", "castle", "village",
    "desert", "lake", "mill", "road", "square", "library", "station", "meadow", "cliff", "orchard", "temple",
    "theatre", "museum", "farm", "beach", "tunnel", "palace", "quarry", "lighthouse",
)  # fmt: skip
OCCASIONS = (
    "at dawn", "at noon", "at night", "in spring", "in summer", "in autumn", "in winter", "after rain", "in a storm",
    "on a holiday", "long ago", "today",
)  # fmt: skip
OPTIONS = {
    "opening": ("the {noun} is", "a {noun} like this is", "most people find it", "i would call it"),
    "adjective": (
        "quiet", "bright", "cold", "crowded", "empty", "golden", "grey", "strange", "busy", "calm", "wild", "old",
    ),
    "link": ("and", "but", "yet", "and also", "though rarely"),
    "second": (
        "gentle", "loud", "warm", "green", "dusty", "proud", "slow", "clear", "lonely", "rich", "sharp", "soft",
    ),
    "who": (
        "children", "sailors", "old men", "painters", "farmers", "birds", "travellers", "nobody", "musicians", "cats",
    ),
    "does": (
        "wait there", "walk past", "sing there", "sleep there", "meet there", "stay away", "work there", "dream of it",
    ),
    "close": ("every day .", "once a year .", "when it can .", "without a word .", "for hours .", "as ever ."),
}  # fmt: skip
"""What may be said at each place of a sentence; a place's table depends on what its row below names."""
DEPENDS = {
    "opening": ("task",),
    "adjective": ("noun", "occasion"),
    "link": ("adjective",),
    "second": ("adjective", "occasion"),
    "who": ("noun",),
    "does": ("who", "occasion"),
    "close": ("does",),
}
TEACHER, OTHER, WEB = "teacher", "other", ("web0", "web1", "web2", "web3")
PROMPTS = 1400
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def weights(voice: str, place: str, context: Sequence[str]) -> list[float]:
    """A voice's probabilities at a place in a context: a Dirichlet draw (concentration 0.35), always the same. A voice
    of another world than the first has that one's name before its own."""
    seed = hashlib.sha256("|".join((voice, place, *context)).encode()).digest()
    drawn = random.Random(seed)
    raw = [drawn.gammavariate(0.35, 1.0) + 1e-4 for _ in OPTIONS[place]]
    return [value / sum(raw) for value in raw]


def speak(voices: Sequence[tuple[str, float]], said: dict[str, str], chance: random.Random) -> str:
    """One completion by a mixture of voices: at each place their probabilities are averaged by share."""
    said = dict(said)
    for place, options in OPTIONS.items():
        context = [said[name] for name in DEPENDS[place]]
        tables = [weights(voice, place, context) for voice, _ in voices]
        mixed = [sum(s * t[i] for (_, s), t in zip(voices, tables, strict=True)) for i in range(len(options))]
        said[place] = chance.choices(options, mixed)[0]
    return " ".join(said[place] for place in OPTIONS).format(noun=said["noun"])


def questions() -> list[dict[str, str]]:
    """Every prompt there is, in a fixed random order."""
    every = [{"task": t, "noun": n, "occasion": o} for t in TASKS for n in NOUNS for o in OCCASIONS]
    random.Random(0).shuffle(every)
    return every


def prompt_of(said: dict[str, str]) -> str:
    return f"{said['task']} the {said['noun']} {said['occasion']} ?"


@dataclass(frozen=True)
class Recipe:
    """A model's shape, and whom it has heard: one voice mixed for each sentence, or one of several at a time."""

    layers: int
    hidden: int
    steps: int
    voices: tuple[tuple[tuple[str, float], ...], ...]


def recipes(world: str) -> dict[str, Recipe]:
    """The models of a world; the first world's name is empty."""
    teacher, other, *web = (world + voice for voice in (TEACHER, OTHER, *WEB))
    heard = tuple(((voice, 1.0),) for voice in web)
    return {
        "teacher": Recipe(4, 160, 1200, (((teacher, 1.0),),)),
        "open-teacher": Recipe(4, 160, 1200, (((teacher, 0.5), (other, 0.5)),)),
        "proxy": Recipe(3, 128, 700, heard),
        "student": Recipe(2, 64, 700, heard),
    }


def make_tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=640, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def train(name: str, recipe: Recipe, tokenizer: Any, folder: Path) -> None:
    """From random weights on the model's voices, over all prompts; fresh text in every batch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from proxykd.models.batching import collate
    from proxykd.models.scorer import CompletionScorer
    from proxykd.text.chat import ChatFormat

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=3 * recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.hidden // 32,
        num_key_value_heads=recipe.hidden // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    scorer, chat = CompletionScorer(model, len(tokenizer)), ChatFormat(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=recipe.steps)
    chance, every = random.Random(name), questions()
    for step in range(recipe.steps):
        asked = chance.choices(every, k=48)
        said = [speak(chance.choice(recipe.voices), question, chance) for question in asked]
        prompts = [chat.prompt_ids(({"role": "user", "content": prompt_of(question)},)) for question in asked]
        loss = -scorer(collate(prompts, [chat.completion_ids(text) for text in said])).token_logps_N.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step + 1 == recipe.steps:
            print(f"{name}: step {step + 1} of {recipe.steps}, {loss.item():.3f} nats a token", flush=True)
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)


def write_prompts(folder: Path, mark: str, asked: Sequence[dict[str, str]]) -> None:
    """The prompts that the teacher is asked, and the others, which nobody answers."""
    rows = [json.dumps({"id": f"p{i:05d}", "prompt": prompt_of(said)}) + "\n" for i, said in enumerate(asked)]
    (folder / f"prompts{mark}.jsonl").write_text("".join(rows[:PROMPTS]))
    (folder / f"unlabelled{mark}.jsonl").write_text("".join(rows[PROMPTS:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs/miniature"))
    parser.add_argument("--world", default="")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--models", nargs="*", default=["teacher", "open-teacher", "proxy", "student"])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    every, models = questions(), recipes(args.world)
    write_prompts(args.folder, "", every)
    for seed in args.seeds:
        write_prompts(args.folder, f"-{seed}", random.Random(f"prompts {seed}").sample(every, len(every)))
    chance, heard = random.Random(1), models["student"].voices
    tokenizer = make_tokenizer([prompt_of(q) + " " + speak(heard[i % 4], q, chance) for i, q in enumerate(every)])
    for name in args.models:
        if not (args.folder / name / "config.json").exists():
            train(name, models[name], tokenizer, args.folder)
    print(f"models and prompts in {args.folder}")


if __name__ == "__main__":
    main()
