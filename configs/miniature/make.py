"""The miniature's world: four small models of one's own training, and prompts.

    python configs/miniature/make.py [FOLDER] [--world NAME] [--seeds 1 2 3] [--models teacher proxy student ...]

A "voice" is a probabilistic grammar of short descriptions: which words follow depends on the noun, the occasion and
what was said before, by tables that are drawn once for each voice. The teacher speaks a voice of its own; the open
teacher one that lies between it and another; proxy and student have heard four other voices, mixed, as open models
have read the web. So every model knows the language, and none but the teacher its voice. `student-other` has heard
what the student has, in a tokenizer of its own: of fewer tokens, learned from two of the voices.

FOLDER is runs/miniature if it is not named. Every table of another --world is drawn anew. With --seeds, each of them
has prompts of its own, prompts-SEED.jsonl: what a study that names {seed} in corpus.prompts takes. The prompts that
are left, unlabelled.jsonl and unlabelled-SEED.jsonl, are for corpus.unlabelled.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from small_models import Shape, make_tokenizer, train, weights

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
OTHER_STUDENT, OTHER_TOKENS = "student-other", 400
PROMPTS = 1400


def speak(voices: Sequence[tuple[str, float]], said: dict[str, str], chance: random.Random) -> str:
    """One completion by a mixture of voices: at each place their probabilities are averaged by share."""
    said = dict(said)
    for place, options in OPTIONS.items():
        context = [said[name] for name in DEPENDS[place]]
        tables = [weights(voice, place, context, len(options)) for voice, _ in voices]
        mixed = [sum(s * t[i] for (_, s), t in zip(voices, tables, strict=True)) for i in range(len(options))]
        said[place] = chance.choices(options, mixed)[0]
    return " ".join(said[place] for place in OPTIONS).format(noun=said["noun"])


@cache
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

    shape: Shape
    voices: tuple[tuple[tuple[str, float], ...], ...]

    def batch(self, chance: random.Random, size: int) -> list[tuple[str, str]]:
        asked = chance.choices(questions(), k=size)
        said = [speak(chance.choice(self.voices), question, chance) for question in asked]
        return list(zip(map(prompt_of, asked), said, strict=True))


def recipes(world: str) -> dict[str, Recipe]:
    """The models of a world; the first world's name is empty."""
    teacher, other, *web = (world + voice for voice in (TEACHER, OTHER, *WEB))
    heard = tuple(((voice, 1.0),) for voice in web)
    return {
        "teacher": Recipe(Shape(4, 160, 1200), (((teacher, 1.0),),)),
        "open-teacher": Recipe(Shape(4, 160, 1200), (((teacher, 0.5), (other, 0.5)),)),
        "proxy": Recipe(Shape(3, 128, 700), heard),
        "student": Recipe(Shape(2, 64, 700), heard),
        OTHER_STUDENT: Recipe(Shape(2, 64, 700), heard),
    }


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
    parser.add_argument("--models", nargs="*", default=["teacher", "open-teacher", "proxy", "student", OTHER_STUDENT])
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    every, models = questions(), recipes(args.world)
    write_prompts(args.folder, "", every)
    for seed in args.seeds:
        write_prompts(args.folder, f"-{seed}", random.Random(f"prompts {seed}").sample(every, len(every)))
    chance, heard = random.Random(1), models["student"].voices
    tokenizer = make_tokenizer([prompt_of(q) + " " + speak(heard[i % 4], q, chance) for i, q in enumerate(every)])
    other = make_tokenizer([speak(heard[i % 2], q, chance) for i, q in enumerate(every)], size=OTHER_TOKENS)
    for name in args.models:
        if not (args.folder / name / "config.json").exists():
            own = other if name == OTHER_STUDENT else tokenizer
            train(name, models[name].shape, models[name].batch, own, args.folder)
    print(f"models and prompts in {args.folder}")


if __name__ == "__main__":
    main()
