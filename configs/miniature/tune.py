"""The miniature's tuning, in two steps, on the validation slice of a seed of its own.

    python configs/miniature/tune.py teachers        those that are trained themselves: the proxy, TAKD's assistant
    python configs/miniature/tune.py students        each method's student, from the teachers in study-miniature.yaml
    proxykd study runs/miniature/tune-STEP.yaml      (each of the two writes one)
    python configs/miniature/tune.py STUDY           prints each method's grid, the best first

Every method's student tries the same grid, and so does everything that teaches one. What decides is the student's
validation NLL. Ablations and variants of Proxy-KD's loss keep Proxy-KD's settings: they differ from it in one thing.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from proxykd.runs.storage import read_json
from proxykd.study.presets import PRESETS
from proxykd.study.studies import StudyDirectory, load_study

STUDY = Path(__file__).parents[1] / "study-miniature.yaml"
FOLDER = Path("runs/miniature")
SEED = 0
STUDENT = {"distillation.learning_rate": (5e-4, 1e-3, 2e-3)}
ASSISTANT = "white_box.assistant"
GRIDS: dict[str, dict[str, dict[str, tuple[Any, ...]]]] = {
    "teachers": {
        "proxy_kd": {
            "proxy.lora.rank": (16, 64),
            "warmup.epochs": (4, 12),
            "alignment.learning_rate": (1e-3, 2e-3),
            "alignment.epochs": (2, 6),
        },
        "takd": {
            "proxy.lora.rank": (16, 64),
            f"{ASSISTANT}.learning_rate": (1e-3, 2e-3, 4e-3, 6e-3),
            f"{ASSISTANT}.epochs": (4, 12),
        },
    },
    "students": dict.fromkeys(
        (
            "proxy_kd", "kl_by_sequence", "black_box_kd", "forward_kl", "reverse_kl", "reverse_kl_on_policy", "jsd",
            "tvd", "takd", "without_alignment",
        ),
        STUDENT,
    ),
}  # fmt: skip


def write(step: str) -> None:
    study = load_study(STUDY).model_dump(mode="json")
    arms = {}
    for method, grid in GRIDS[step].items():
        for number, values in enumerate(product(*grid.values()), 1):
            setting = dict(zip(grid, values, strict=True))
            title = f"{method}: " + ", ".join(f"{key} {value:g}" for key, value in setting.items())
            changes = {**PRESETS[method].overrides, **study["settings"].get(method, {}), **setting}
            arms[f"{method}-{number}"] = {"title": title, "set": changes}
    tune = {"name": f"tune-{step}", "seeds": [SEED], "arms": list(arms), "own_arms": arms, "run": study["run"]}
    file = FOLDER / f"tune-{step}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(tune, sort_keys=False))
    print(f"{len(arms)} arms in {file}")


def read(path: str) -> None:
    study = StudyDirectory(path)
    titles = study.study().title
    found = [(arm["curve"][-1]["held_out_nll"], titles(arm["name"])) for arm in read_json(study.report)["arms"]]
    for method in dict.fromkeys(title.split(":")[0] for _, title in found):
        for nll, title in sorted(row for row in found if row[1].split(":")[0] == method):
            print(f"{nll:.4f}  {title}")


if __name__ == "__main__":
    write(sys.argv[1]) if sys.argv[1] in GRIDS else read(sys.argv[1])
