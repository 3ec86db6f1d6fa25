"""One attempt at a data set, for tests that kill it: python -m tests.collect_once CONFIG PROMPTS OUT."""

from __future__ import annotations

import sys

from proxykd.collection.job import Collection
from proxykd.config import load_collect_config
from proxykd.text.corpus import read_prompts


def main(config_path: str, prompts: str, out: str) -> None:
    config = load_collect_config(config_path)
    collection = Collection(out, config, read_prompts(prompts))
    print("asking", flush=True)
    outcome = collection.run(config.teacher.address, lambda progress: None)
    collection.conclude(outcome)
    collection.require_whole(outcome)


if __name__ == "__main__":
    main(*sys.argv[1:])
