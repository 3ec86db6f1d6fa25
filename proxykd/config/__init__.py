"""The frozen configuration of a run. Imports no other room, and neither torch nor transformers.

Defaults are the paper's (docs/design.md, Defaults). `collection`, `resources`, `redis`, `tracking` and `runs_dir` say
where, how fast and how visibly a run happens, and so does `engine.adapters`; everything else changes its results and is
part of the run's hash.
"""

from proxykd.config.machines import LORA_SLOTS, EngineConfig, ResourceConfig, lora_slot_rank
from proxykd.config.method import (
    ENGINE_TOP_K,
    HELD_OUT,
    USES,
    AlignmentConfig,
    CorpusConfig,
    DistillationConfig,
    OnPolicyConfig,
    PreferenceConfig,
    Reasoning,
    TrainConfig,
    Use,
)
from proxykd.config.reading import (
    apply_overrides,
    is_study,
    load_certify_config,
    load_collect_config,
    load_config,
    read_yaml,
    require_kind,
    set_key,
    validate_config,
    validated,
)
from proxykd.config.sections import LoraConfig, ModelConfig, Section, section_of
from proxykd.config.teacher import (
    AZURE_DEPLOYMENT,
    BudgetConfig,
    CollectionConfig,
    Flag,
    PriceConfig,
    QualityConfig,
    TeacherConfig,
)
from proxykd.config.whole import CertifyConfig, CollectConfig, RunConfig

__all__ = [
    "AZURE_DEPLOYMENT",
    "ENGINE_TOP_K",
    "HELD_OUT",
    "LORA_SLOTS",
    "USES",
    "AlignmentConfig",
    "BudgetConfig",
    "CertifyConfig",
    "CollectConfig",
    "CollectionConfig",
    "CorpusConfig",
    "DistillationConfig",
    "EngineConfig",
    "Flag",
    "LoraConfig",
    "ModelConfig",
    "OnPolicyConfig",
    "PreferenceConfig",
    "PriceConfig",
    "QualityConfig",
    "Reasoning",
    "ResourceConfig",
    "RunConfig",
    "Section",
    "TeacherConfig",
    "TrainConfig",
    "Use",
    "apply_overrides",
    "is_study",
    "load_certify_config",
    "load_collect_config",
    "load_config",
    "lora_slot_rank",
    "read_yaml",
    "require_kind",
    "section_of",
    "set_key",
    "validate_config",
    "validated",
]
