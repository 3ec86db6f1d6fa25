"""A study: one run config, many arms that differ from it in a setting or two, several seeds, perhaps several sizes.

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
    require_kind,
    set_key,
    validate_config,
    validated,
)
from proxykd.errors import ConfigError
from proxykd.runs.run_directory import RunDirectory
from proxykd.runs.storage import location, read_json, write_json
from proxykd.study.presets import PRESETS, PROXY_KD, VARIANTS, Facts


class ArmConfig(Section):
    """An arm of one's own: overrides of the run, by dotted keys, and what the tables call it."""

    title: str
    """What the study's tables call it."""
    set: dict[str, Any] = Field(min_length=1)
    """Keys of the run's config by their dotted names, with the values that this arm has for them."""


class SizesConfig(Section):
    """Arms that run with fewer training records as well as with all: what quality costs in records, and how many fewer
    of them an arm needs for the reference's.
    """

    records: tuple[int, ...] = Field(min_length=1)
    """Values of `corpus.training_limit`, each below the corpus' training records."""
    arms: tuple[str, ...] = Field(min_length=1)
    """Of the study's `arms`, those that run at each size, with every seed."""

    @model_validator(mode="after")
    def _check(self) -> SizesConfig:
        if (least := min(self.records)) < 1:
            raise ValueError(f"records has {least}; a size is at least 1, remove it")
        for key, values in (("records", self.records), ("arms", self.arms)):
            if len(set(values)) != len(values):
                raise ValueError(f"{key} {', '.join(map(str, values))} must each be named once; remove the others")
        return self


class StudyConfig(Section):
    """What `proxykd study` takes ([study.md](study.md)). In any text of `run`, and of what arms set there, `{seed}` is
    the run's seed: `prompts: voices/seed-{seed}.jsonl` gives each seed prompts of its own.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Names the study: small letters, digits and hyphens."""
    seeds: tuple[int, ...] = (0,)
    """Every arm runs once with each."""
    arms: tuple[str, ...] = Field(min_length=1)
    """Names of presets ([study.md](study.md) lists them) and of `own_arms`."""
    reference: str | None = None
    """The arm that the others' differences are to, paired by seed. Unset, `proxy_kd` where it is among `arms`."""
    sizes: SizesConfig | None = None
    own_arms: dict[str, ArmConfig] = Field({})
    settings: dict[str, dict[str, Any]] = Field({})
    """By arm, what it needs beside its own change for a fair comparison: its own best learning rate, say. Keys as in an
    own arm's `set`.
    """
    run: dict[str, Any]
    """What arms differ from: a config as `proxykd run` takes it, without `name` and `seed`."""

    @model_validator(mode="after")
    def _check(self) -> StudyConfig:
        known = PRESETS.keys() | self.own_arms.keys()
        sized = self.sizes.arms if self.sizes else ()
        if unknown := [name for name in (*self.arms, *self.settings, *sized) if name not in known]:
            raise ValueError(f"unknown arm(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}, or add own_arms")
        if taken := PRESETS.keys() & self.own_arms.keys():
            raise ValueError(f"own_arms {', '.join(taken)} are presets; choose other names")
        if len(set(self.seeds)) != len(self.seeds) or len(set(self.arms)) != len(self.arms):
            raise ValueError(
                f"seeds {list(self.seeds)} and arms {', '.join(self.arms)} must each be named once; remove the others"
            )
        if absent := [name for name in sized if name not in self.arms]:
            raise ValueError(
                f"sizes.arms has {', '.join(absent)}, which arms has not; add to arms what runs at full size, too"
            )
        if self.reference is not None and self.reference not in self.arms:
            raise ValueError(f"reference is {self.reference}, which is not among arms; add it to them, or name another")
        if given := {"name", "seed"} & self.run.keys():
            raise ValueError(f"run.{given.pop()} is the study's to set; remove it")
        return self

    @model_validator(mode="after")
    def _resolve(self) -> StudyConfig:
        """An unset reference that follows from the arms gets its value, so that study.json says what it was."""
        if self.reference is None and PROXY_KD in self.arms:
            object.__setattr__(self, "reference", PROXY_KD)
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
        """Every arm with every seed, at full size and then at each of its sizes, as a run's config.

        Raises:
            ConfigError: an arm needs what the config does not give, or a size is none below its full one.
        """
        full = [self._arm(name, seed, None) for name in self.arms for seed in self.seeds]
        if self.sizes is None:
            return full
        sized = [arm for arm in full if arm.name in self.sizes.arms]
        return full + [self._smaller(arm, size) for arm in sized for size in self.sizes.records]

    def _smaller(self, arm: Arm, size: int) -> Arm:
        limit = arm.config.corpus.training_limit
        if limit is not None and size >= limit:
            raise ConfigError(
                f"study {self.name}: sizes.records has {size}, but corpus.training_limit leaves {arm.name} {limit} "
                f"records; name sizes below it"
            )
        return self._arm(arm.name, arm.seed, size)

    def _arm(self, name: str, seed: int, size: int | None) -> Arm:
        raw = json.loads(json.dumps(self.run))
        own = PRESETS[name].overrides if name in PRESETS else self.own_arms[name].set
        for key, value in {**own, **self.settings.get(name, {})}.items():
            set_key(raw, key, value)
        run = f"{name.replace('_', '-')}-s{seed}"
        if size is not None:
            set_key(raw, "corpus.training_limit", size)
            run += f"-n{size}"
        raw |= {"name": run, "seed": seed}
        return Arm(name, seed, size, validate_config(_with_seed(raw, seed), f"arm {name} of study {self.name}"))


def _with_seed(value: Any, seed: int) -> Any:
    """What YAML holds, with the seed for `{seed}` in all of its texts."""
    match value:
        case str():
            return value.replace("{seed}", str(seed))
        case dict():
            return {key: _with_seed(inner, seed) for key, inner in value.items()}
        case list():
            return [_with_seed(inner, seed) for inner in value]
    return value


@dataclass(frozen=True)
class Arm:
    name: str
    seed: int
    size: int | None
    """Its `corpus.training_limit`, where the study's `sizes` set it; None at full size."""
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
        """Every arm, seed and size with its run in this directory."""
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
    require_kind(raw, path, study=True)
    apply_overrides(raw, overrides)
    return validate_study(raw, str(path))


def validate_study(raw: Facts, origin: str) -> StudyConfig:
    """Returns the study that `raw`, as read from `origin`, describes.

    Raises:
        ConfigError: a key is unknown, an arm cannot run, corpus.follow is set, or an engine is to judge an on-policy
            phase.
    """
    study = validated(StudyConfig, raw, origin, "study")
    configs = [arm.config for arm in study.expand()]
    if any(config.corpus.follow for config in configs):
        raise ConfigError(f"{origin}: corpus.follow would give every arm another corpus; leave it out of a study")
    if any(config.on_policy is not None and config.on_policy.source == "engine" for config in configs):
        raise ConfigError(
            f"{origin}: on_policy.source is engine, which a phase would hold while it trains, and the runs of a study "
            f"share one in turns; set on_policy.source=trainer"
        )
    return study
