"""Profiles and configurations that several tests of profiles share."""

from __future__ import annotations

from typing import Any

from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.sensitivity import Sensitivity
from freeloc_fx.method.visibility import TSA
from freeloc_fx.planning.profile import Profile

FIELDS = {"w1": 12, "w2": 20, "g1": 2, "g2": 8}


class WanTransformer3DModel:
    def __init__(self, **config: Any) -> None:
        self.config = config


WAN = {"num_layers": 30, "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "eps": 1e-6}


def full() -> Profile:
    return Profile(
        21,
        {0: "vrpr+tsa", 3: "direct+temp"},
        vrpr={41: FIELDS, 81: VRPR(10, 14, 2, 8, "separable")},
        tsa={41: {"d1": 8, "d2": 24, "ds": 195, "tokens": 1560}, 81: TSA(8, 24, 100, False, "2d")},
        temperature={3: 1.25},
        parts={"riflex": {"k": 4}, "freelong++": {"windows": [81, 41, 21], "cutoff": 0.5}},
        lengths={81: {"layers": "vrpr+tsa"}, 41: {"layers": {0: "vrpr+temp"}, "temperature": {0: 1.5}}},
        quantise="separable",
        name="full",
        model={"class": "Some", "config": {"patch_size": [1, 2, 2], "eps": 1e-6, "flag": True, "none": None}},
        layer_count=4,
        sensitivities={0: Sensitivity(0.5, 0.25, 0.01), 1: {"position": 1, "context": 2, "context_error": 0.5}},
        provenance={"source": "test", "seeds": [1, 2], "nested": {"é": [{"a": 1.5}]}},
    )
