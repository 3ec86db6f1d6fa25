"""A study: one run config, many arms that differ from it in a setting or two, several seeds; and what arms share.

An arm is a run like any other. Two runs share a stage when everything that its result depends on is the same.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from proxykd.config import (
    ModelConfig,
    RunConfig,
    Section,
    apply_overrides,
    read_yaml,
    set_key,
    validate_config,
)
from proxykd.errors import ConfigError
from proxykd.losses.trust import reduction_of
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
    set: dict[str, Any] = Field(min_length=1)


class StudyConfig(Section):
    """`proxykd study CONFIG`. `run` is the full method's config, without name and seed.

    `arms` are names of presets and of `own_arms`; `settings` are overrides that an arm needs for a fair comparison (its
    own best learning rate, say), by arm.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] = Field(min_length=1)
    own_arms: dict[str, ArmConfig] = Field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict)
    run: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        known = PRESETS.keys() | self.own_arms.keys()
        if unknown := [name for name in (*self.arms, *self.settings) if name not in known]:
            raise ValueError(f"unknown arm(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}, or add own_arms")
        if taken := PRESETS.keys() & self.own_arms.keys():
            raise ValueError(f"own_arms {', '.join(taken)} are presets; choose other names")
        if len(set(self.seeds)) != len(self.seeds) or len(set(self.arms)) != len(self.arms):
            raise ValueError("seeds and arms must each be named once")
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
        """Where a model that several runs start from is kept once; `voice` says as whom it speaks there."""
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
    try:
        study = StudyConfig.model_validate(raw)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or 'study'}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{origin} is not a valid study:\n" + "\n".join(lines)) from None
    if any(arm.config.corpus.follow for arm in study.expand()):
        raise ConfigError(f"{origin}: corpus.follow would give every arm another corpus; leave it out of a study")
    return study


def stage_keys(config: RunConfig) -> dict[str, str]:
    """For each stage, a hash of all settings that its result depends on (a round's number aside).

    Runs with equal keys make equal results, so that one may take over the other's. (The teacher is asked once for all
    seeds: they share its text.)
    """
    whole = config.of_results()
    del whole["name"]

    def of(*keys: str) -> Facts:
        return {key: whole[key] for key in keys}

    collected = of("teacher", "quality") | {key: whole["corpus"][key] for key in ("prompts", "limit")}
    tokenizer = {key: whole["proxy"][key] for key in ("source", "chat_template")}
    corpus = [collected, of("seed", "corpus"), tokenizer]
    warmup = [*corpus, of("proxy", "warmup")]
    align = [*warmup, of("alignment", "engine")]
    proxy = align if config.distillation.source == "proxy" else [*corpus, of("proxy", "engine")]
    completed: list[Any] = [*corpus, of("engine")]
    assisted: list[Any] = []
    if config.white_box is not None:
        white_box = whole["white_box"]
        completed.append({key: white_box[key] for key in ("teacher", "max_new_tokens")})
        assisted = [*completed, of("proxy"), {key: white_box[key] for key in ("assistant", "temperature")}]
    parts = {
        "collect": [collected],
        "corpus": corpus,
        "warmup": warmup,
        "align": align,
        "score": [*proxy, of("score"), reduction_of(config.distillation.trust)],
        "complete": completed,
        "assist": assisted,
        "distil": [_used(config, whole)],
        "evaluate": [_used(config, whole)],
    }
    return {
        stage: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]
        for stage, part in parts.items()
    }


def _used(config: RunConfig, whole: Facts) -> Facts:
    """All settings but those of methods that the run does not use."""
    unused = set() if config.open_teacher is not None else {"white_box"}
    if config.distillation.source != "proxy":
        unused |= {"warmup", "alignment"}
    if not config.uses_proxy:
        unused |= {"score"}
    return {key: value for key, value in whole.items() if key not in unused}
