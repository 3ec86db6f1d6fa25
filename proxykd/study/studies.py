"""A study: one run config, many arms that differ from it in a setting or two, several seeds; and what arms share.

An arm is a run like any other. Two runs share a stage when everything that its result depends on is the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from proxykd.config import (
    ModelConfig,
    RunConfig,
    Section,
    apply_overrides,
    read_yaml,
    set_key,
    validate_config,
    validated,
)
from proxykd.errors import ConfigError
from proxykd.runs.storage import RunDirectory, location, read_json, write_json

Facts = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """An arm that every study can have: what it is called in a table, and how it differs from the full method."""

    title: str
    group: str
    overrides: Facts


PROXY_KD = "proxy_kd"
METHODS, ABLATIONS, VARIANTS = "methods", "ablations", "variants"


def _white_box(divergence: str, on_policy: bool = False) -> Facts:
    return {
        "distillation.source": "white_box",
        "white_box.divergence": divergence,
        "white_box.on_policy": on_policy,
    }


PRESETS = {
    PROXY_KD: Preset("Proxy-KD", METHODS, {}),
    "black_box_kd": Preset("black-box KD", METHODS, {"distillation.source": "none"}),
    "forward_kl": Preset("forward KL (white-box)", METHODS, _white_box("forward_kl")),
    "reverse_kl": Preset("reverse KL (white-box)", METHODS, _white_box("reverse_kl")),
    "reverse_kl_on_policy": Preset("reverse KL, on-policy (white-box)", METHODS, _white_box("reverse_kl", True)),
    "jsd": Preset("JSD (white-box)", METHODS, _white_box("jsd")),
    "tvd": Preset("TVD (white-box)", METHODS, _white_box("tvd")),
    "takd": Preset(
        "TAKD (white-box)", METHODS, {"distillation.source": "assistant", "white_box.divergence": "forward_kl"}
    ),
    "whole_text_on_policy": Preset(
        "whole-text Proxy-KD, on-policy phase", METHODS, {"corpus.whole_text": True, "on_policy.judge": "proxy"}
    ),
    "soda": Preset(
        "SODA (SFT, then preference)",
        METHODS,
        {"corpus.whole_text": True, "distillation.source": "none", "on_policy.judge": "preference"},
    ),
    "without_proxy": Preset("without proxy", ABLATIONS, {"distillation.source": "none"}),
    "without_alignment": Preset("without alignment", ABLATIONS, {"distillation.source": "base"}),
    "without_preference": Preset("without preference loss", ABLATIONS, {"alignment.preference": False}),
    "without_trust": Preset("without trust weight", ABLATIONS, {"distillation.trust": "none"}),
    "constant_trust": Preset("constant trust weight", ABLATIONS, {"distillation.trust": "constant"}),
    "kl_by_sequence": Preset("KL a sequence mean", VARIANTS, {"distillation.kl_reduction": "sequence_mean"}),
    "kl_by_token": Preset("KL a token sum", VARIANTS, {"distillation.kl_reduction": "token_sum"}),
    "trust_by_sequence": Preset("trust by sequence sum", VARIANTS, {"distillation.trust": "sequence_sum"}),
    "trust_by_token": Preset("trust by token mean", VARIANTS, {"distillation.trust": "token_mean"}),
}


class ArmConfig(Section):
    """An arm of one's own: overrides of the run, by dotted keys, and what the tables call it."""

    title: str
    """What the study's tables call it."""
    set: dict[str, Any] = Field(min_length=1)
    """Keys of the run's config by their dotted names, with the values that this arm has for them."""


class StudyConfig(Section):
    """What `proxykd study` takes ([study.md](study.md))."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Names the study: small letters, digits and hyphens."""
    seeds: tuple[int, ...] = (0,)
    """Every arm runs once with each."""
    arms: tuple[str, ...] = Field(min_length=1)
    """Names of presets ([study.md](study.md) lists them) and of `own_arms`."""
    own_arms: dict[str, ArmConfig] = Field({})
    settings: dict[str, dict[str, Any]] = Field({})
    """By arm, what it needs beside its own change for a fair comparison: its own best learning rate, say. Keys as in an
    own arm's `set`.
    """
    run: dict[str, Any]
    """The full method's config, as `proxykd run` takes it, without `name` and `seed`."""

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        known = PRESETS.keys() | self.own_arms.keys()
        if unknown := [name for name in (*self.arms, *self.settings) if name not in known]:
            raise ValueError(f"unknown arm(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}, or add own_arms")
        if taken := PRESETS.keys() & self.own_arms.keys():
            raise ValueError(f"own_arms {', '.join(taken)} are presets; choose other names")
        if len(set(self.seeds)) != len(self.seeds) or len(set(self.arms)) != len(self.arms):
            raise ValueError(
                f"seeds {list(self.seeds)} and arms {', '.join(self.arms)} must each be named once; remove the others"
            )
        if given := {"name", "seed"} & self.run.keys():
            raise ValueError(f"run.{given.pop()} is the study's to set; remove it")
        return self

    @property
    def id(self) -> str:
        """Its name and the hash of everything that changes a result."""
        digests = [arm.config.sha256 for arm in self.expand()]
        return f"{self.name}-{hashlib.sha256(''.join(digests).encode()).hexdigest()[:8]}"

    def title(self, arm: str) -> str:
        return PRESETS[arm].title if arm in PRESETS else self.own_arms[arm].title

    def group(self, arm: str) -> str:
        return PRESETS[arm].group if arm in PRESETS else VARIANTS

    def expand(self) -> list[Arm]:
        """Every arm with every seed, as a run's config.

        Raises:
            ConfigError: an arm needs what the config does not give.
        """
        return [self._arm(name, seed) for name in self.arms for seed in self.seeds]

    def _arm(self, name: str, seed: int) -> Arm:
        raw = json.loads(json.dumps(self.run))
        own = PRESETS[name].overrides if name in PRESETS else self.own_arms[name].set
        for key, value in {**own, **self.settings.get(name, {})}.items():
            set_key(raw, key, value)
        raw |= {"name": f"{name.replace('_', '-')}-s{seed}", "seed": seed}
        return Arm(name, seed, validate_config(raw, f"arm {name} of study {self.name}"))


@dataclass(frozen=True)
class Arm:
    name: str
    seed: int
    config: RunConfig


class StudyDirectory:
    """Names every path of one study. Its runs lie in runs/, and share models and adapters by hard links."""

    def __init__(self, root: str | Path):
        self.root = location(root)

    @classmethod
    def create(cls, study: StudyConfig) -> StudyDirectory:
        """Makes or reopens the study's directory: <runs_dir>/<study id>."""
        directory = cls(location(study.expand()[0].config.runs_dir) / study.id)
        write_json(directory.root / "study.json", study.model_dump(mode="json"))
        for run in directory.arms():
            RunDirectory.create(run.config)
        return directory

    @staticmethod
    def is_one(path: str | Path) -> bool:
        return (location(path) / "study.json").exists()

    @property
    def id(self) -> str:
        return self.root.name

    def study(self) -> StudyConfig:
        return validate_study(read_json(self.root / "study.json"), str(self.root / "study.json"))

    def arms(self) -> list[Arm]:
        """Every arm with its run in this directory."""
        place = {"runs_dir": str(self.root / "runs")}
        return [replace(arm, config=arm.config.model_copy(update=place)) for arm in self.study().expand()]

    def runs(self) -> list[RunDirectory]:
        return [self.run(arm) for arm in self.arms()]

    def run(self, arm: Arm) -> RunDirectory:
        return RunDirectory(self.root / "runs" / arm.config.run_id)

    def model(self, config: ModelConfig, voice: str) -> Path:
        """Returns the folder of a model that several runs start from; `voice` says as whom it speaks there."""
        digest = hashlib.sha256(f"{config.model_dump_json()}{voice}".encode()).hexdigest()[:8]
        return self.root / "models" / digest

    @property
    def adapters(self) -> Path:
        """Every adapter of every run, for the engines."""
        return self.root / "adapters"

    @property
    def report(self) -> Path:
        return self.root / "study" / "report.json"


def load_study(path: str | Path, overrides: tuple[str, ...] = ()) -> StudyConfig:
    """Reads a study from YAML, with `section.key=value` overrides, and checks every arm.

    Raises:
        ConfigError: the file is missing or torn, a key is unknown, or an arm cannot run.
    """
    raw = read_yaml(path)
    apply_overrides(raw, overrides)
    return validate_study(raw, str(path))


def validate_study(raw: Facts, origin: str) -> StudyConfig:
    """Returns the study that `raw`, as read from `origin`, describes.

    Raises:
        ConfigError: a key is unknown, an arm cannot run, or corpus.follow is set.
    """
    study = validated(StudyConfig, raw, origin, "study")
    if any(arm.config.corpus.follow for arm in study.expand()):
        raise ConfigError(f"{origin}: corpus.follow would give every arm another corpus; leave it out of a study")
    return study
