"""The miniature's tuning: every method's student tries the same grid, on the validation slice of a seed of its own.

    python configs/miniature/tune.py                 writes runs/miniature/tune.yaml
    proxykd study runs/miniature/tune.yaml
    python configs/miniature/tune.py STUDY           prints each method's grid and its best settings

Ablations and variants of Proxy-KD's loss keep Proxy-KD's settings: they differ from it in one thing.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import yaml

from proxykd.storage import read_json
from proxykd.study import PRESETS, StudyDirectory, load_study

STUDY = Path(__file__).parents[1] / "study-miniature.yaml"
TUNE = Path("runs/miniature/tune.yaml")
SEED = 0
METHODS = (
    "proxy_kd", "kl_by_sequence", "black_box_kd", "forward_kl", "reverse_kl", "reverse_kl_on_policy", "jsd", "tvd",
    "takd", "without_alignment",
)  # fmt: skip
RATES = (1e-3, 3e-3, 6e-3)
EPOCHS = (4, 8)


def write() -> None:
    study = load_study(STUDY).model_dump(mode="json")
    arms = {}
    for method, rate, epochs in product(METHODS, RATES, EPOCHS):
        changes = {**PRESETS[method].overrides, **study["settings"].get(method, {})}
        changes |= {"distillation.learning_rate": rate, "distillation.epochs": epochs}
        arms[f"{method}-{1000 * rate:g}m-{epochs}"] = {"title": f"{method}, {rate:g}, {epochs} epochs", "set": changes}
    tune = {"name": "miniature-tune", "seeds": [SEED], "arms": list(arms), "own_arms": arms, "run": study["run"]}
    TUNE.parent.mkdir(parents=True, exist_ok=True)
    TUNE.write_text(yaml.safe_dump(tune, sort_keys=False))
    print(f"{len(arms)} arms in {TUNE}")


def read(path: str) -> None:
    found: dict[str, dict[tuple[str, str], float]] = {}
    for arm in read_json(StudyDirectory(path).report)["arms"]:
        method, rate, epochs = arm["name"].rsplit("-", 2)
        found.setdefault(method, {})[rate.replace("m", "e-3"), epochs] = arm["curve"][-1]["held_out_nll"]
    for method, grid in found.items():
        best = min(grid, key=lambda setting: grid[setting])
        cells = "  ".join(f"{rate}/{epochs}: {nll:.4f}" for (rate, epochs), nll in grid.items())
        print(f"{method:22} best {best[0]}, {best[1]} epochs   {cells}")


if __name__ == "__main__":
    read(sys.argv[1]) if len(sys.argv) > 1 else write()
