"""The arms that every study can have. One more is an entry of PRESETS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Facts = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """An arm that every study can have: what it is called in a table, and how it differs from the study's run."""

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
    "sft_on_all": Preset("SFT on all the text", METHODS, {"corpus.whole_text": True, "distillation.source": "none"}),
    "whole_text": Preset("whole-text Proxy-KD", METHODS, {"corpus.whole_text": True}),
    "whole_text_nll": Preset(
        "whole-text, NLL rounds", METHODS, {"corpus.whole_text": True, "alignment.preference": False}
    ),
    "whole_text_on_policy": Preset(
        "whole-text Proxy-KD, on-policy phase", METHODS, {"corpus.whole_text": True, "on_policy.judge": "proxy"}
    ),
    "soda": Preset(
        "SODA (SFT, then preference)",
        METHODS,
        {"corpus.whole_text": True, "distillation.source": "none", "on_policy.judge": "preference"},
    ),
    "delta_kl": Preset("Delta-KL", METHODS, {"corpus.whole_text": True, "distillation.source": "shift"}),
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
