"""Who takes part in `tables.py`: named ways to make a long video, in groups, one group a table.

A contestant is the untouched model or a profile applied to it, with or without FreeNoise's initial noise and windows of
predictions. Those of a strategy name are that strategy in every layer with the settings of the model's profile.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from freeloc_fx.generation.noise import default_stride
from freeloc_fx.generation.pipelines import TRANSFORMERS, apply
from freeloc_fx.generation.windows import context_windows
from freeloc_fx.method.positions import VRPR
from freeloc_fx.planning.profile import Profile

GROUPS: dict[str, tuple[str, ...]] = {
    "main": (
        "direct", "window", "window-no-sink", "context-windows", "freenoise", "riflex", "freelong", "profile",
    ),
    "peers": (
        "direct", "freelong++", "longdiff", "ultravico", "anchors", "pi", "ntk", "yarn", "clip", "group",
        "context-windows", "profile",
    ),
    "ablation": ("direct", "tsa", "vrpr", "vrpr+tsa", "random", "split", "split-code", "profile"),
    "temperature": (
        "direct", "direct+temp", "vrpr", "vrpr+temp", "tsa", "tsa+temp", "vrpr+tsa", "vrpr+tsa+temp", "profile",
        "profile+temp",
    ),
    "positions": ("direct", "clip", "group", "vrpr", "vrpr-separable"),
    "text": (
        "direct", "squeeze", "vrpr", "vrpr+squeeze", "tsa", "tsa+squeeze", "vrpr+tsa", "vrpr+tsa+squeeze", "window",
        "window+squeeze", "vrpr+tsa+hold", "freenoise", "profile",
    ),
}  # fmt: skip

ABOUT = {
    "direct": "the untouched model",
    "profile": "FreeLOC: the model's profile, layer by layer",
    "freelong": "spectral blend of global and local attention, from FreeNoise's initial noise",
    "freelong++": "several windows, one band each, from FreeNoise's initial noise",
    "freenoise": "FreeNoise's initial noise, predictions of overlapping windows fused with pyramid weights",
    "window": "a sliding window of 12 of 21 latent frames to either side; every frame sees the first one, the sink",
    "window-no-sink": "the same window; the first frame is seen by those near it only",
    "context-windows": "predictions of half-overlapping windows fused with pyramid weights, independent noise",
    "random": "the layer-wise strategies dealt to the layers at random, fixed seeds, several draws",
    "split": "the paper's: VRPR+TSA in 17 of 30 layers (in proportion), the most sensitive to context, VRPR elsewhere",
    "split-code": "TSA without VRPR in those layers, VRPR in the rest: nearly what the official code runs",
    "vrpr-separable": "VRPR quantised as floor(i/G) - floor(j/G), as the official code does",
    "real": "the true clip itself",
    "reconstruction": "the model's VAE on the true clip: the best any sampler could score",
}

TEXT_PARTS = {"squeeze", "hold"}

PAPER_SHARE = 17 / 30  # of Wan2.1-T2V-1.3B's layers that the paper gives VRPR+TSA


@dataclass(frozen=True)
class Contestant:
    """One way to make a long video.

    Args:
        name: in tables.
        profile: None for the untouched model.
        noise: whether the initial noise is FreeNoise's.
        stride: latent frames between windows of predictions; None without windows.
        draw: number of a random one.
    """

    name: str
    profile: Profile | None
    noise: bool = False
    stride: int | None = None
    draw: int = 0

    def content(self, frames: int) -> str:
        """A hash of what decides the pixels of a clip of so many latent frames beside model, seed and sampling, so that
        other settings are other rows, and a profile that learns for one length keeps its rows of the others."""
        about = ("name", "provenance", "sensitivities", "model", "layer_count")
        used = self.profile and self.profile.at(frames)
        kept = used and [
            (field.name, value)
            for field in fields(used)
            if field.name not in about and (value := getattr(used, field.name)) is not None
        ]
        return hashlib.sha256(repr((kept, self.noise, self.stride)).encode()).hexdigest()[:12]

    def put_on(self, pipe: Any, originals: Mapping[str, Any], window: int, backend: str = "eager") -> None:
        """Give the pipeline's transformers this contestant.

        Args:
            pipe: whose transformers these are.
            originals: the transformers as they were loaded, by their name in the pipeline.
            window: the trained length in latent frames.
            backend: of torch.compile.

        Raises:
            FreelocError: it cannot run on this model.
        """
        for name, model in originals.items():
            setattr(pipe, name, model)
        if self.profile is not None:
            apply(pipe, self.profile, backend=backend)
        if self.stride is not None:
            for name in originals:
                setattr(pipe, name, context_windows(getattr(pipe, name), window, self.stride))


def originals_of(pipe: Any) -> dict[str, Any]:
    return {n: getattr(pipe, n) for n in TRANSFORMERS if getattr(pipe, n, None) is not None}


def split(profile: Profile, layers: int, sparse: str = "vrpr+tsa") -> Profile | None:
    """The paper's kind of assignment from the profile's sensitivities; None where it has none.

    Args:
        profile: the model's.
        layers: that the model has.
        sparse: strategy of the layers most sensitive to context; the others get VRPR. The paper's ablation has VRPR+TSA
            there; the official code keeps the original positions in these layers but for the far sink, which is
            nearest to "tsa".
    """
    found = profile.sensitivities
    if not found:
        return None
    known = [layer for layer in range(layers) if layer in found]  # some models have layers without attention of video
    order = sorted(known, key=lambda layer: -found[layer].context)
    most = set(order[: round(PAPER_SHARE * layers)])
    return profile.with_layers({layer: sparse if layer in most else "vrpr" for layer in known}, "split")


def layerwise(profile: Profile, layers: int) -> tuple[str, Profile] | None:
    """(name, profile) of what the ablation calls layer-wise: the profile where it has more than one strategy, else the
    split of its sensitivities, else nothing."""
    if len({profile.strategy_name(layer) for layer in range(layers)}) > 1:
        return "profile", profile
    made = split(profile, layers)
    return None if made is None else ("split", made)


def dealt(profile: Profile, layers: int, draw: int) -> Profile:
    """The profile's strategies, as many layers of each, dealt to the layers at random."""
    names = [profile.strategy_name(layer) for layer in range(layers)]
    random.Random(draw).shuffle(names)
    return profile.with_layers(dict(enumerate(names)), f"random {draw}")


def separable(profile: Profile) -> Profile:
    """The profile with VRPR quantised separably, settings given or solved."""

    def turned(value: Any) -> Any:
        if isinstance(value, VRPR):
            return replace(value, quantise="separable")
        return {frames: turned(v) for frames, v in value.items()} if isinstance(value, Mapping) else value

    return replace(profile, quantise="separable", vrpr=turned(profile.vrpr))


def _with_temp(profile: Profile, layers: int) -> Profile:
    def turned(one: Profile) -> dict[int, str]:
        names = {i: one.strategy_name(i) for i in range(layers)}
        return {i: n if n.endswith("+temp") else f"{n}+temp" for i, n in names.items()}

    made = profile.with_layers(turned(profile), "with temp")
    if profile.lengths is None:
        return made
    return replace(made, lengths={n: {**item, "layers": turned(profile.at(n))} for n, item in profile.lengths.items()})


def contestants(
    profile: Profile, layers: int, draws: int = 3, text: bool = True
) -> tuple[dict[str, list[Contestant]], dict[str, str]]:
    """Every contestant of `GROUPS` by name (random ones several), and why the others do not take part.

    Args:
        profile: the model's.
        layers: that the model has.
        draws: of the random assignment.
        text: whether its attentions are joint, so that `TEXT_PARTS` do something.
    """
    window = profile.trained_frames
    made: dict[str, list[Contestant]] = {}
    absent: dict[str, str] = {}
    chosen = layerwise(profile, layers)
    for name in dict.fromkeys(n for members in GROUPS.values() for n in members):
        if name == "direct":
            made[name] = [Contestant(name, None)]
        elif name == "profile":
            made[name] = [Contestant(name, profile)]
        elif name == "profile+temp":
            made[name] = [Contestant(name, _with_temp(profile, layers))]
        elif name == "random":
            if chosen is None:
                absent[name] = "the profile gives every layer one strategy and has no sensitivities to split by"
            else:
                made[name] = [Contestant(name, dealt(chosen[1], layers, d), draw=d) for d in range(draws)]
        elif name in ("split", "split-code"):
            if chosen is None or chosen[0] != "split":
                absent[name] = (
                    "the profile has no sensitivities" if chosen is None else "the profile is layer-wise itself"
                )
            else:
                made[name] = [Contestant(name, split(profile, layers, "vrpr+tsa" if name == "split" else "tsa"))]
        elif name == "freenoise":
            made[name] = [Contestant(name, None, True, default_stride(window))]
        elif name == "context-windows":
            made[name] = [Contestant(name, None, False, max(1, window // 2))]
        elif TEXT_PARTS & set(name.split("+")) and not text:
            absent[name] = "no text stands beside the video in the model's attentions"
        elif name == "window-no-sink":
            without = {**(profile.parts or {}), "window": {**(profile.parts or {}).get("window", {}), "sink": False}}
            made[name] = [Contestant(name, replace(profile.with_layers("window"), parts=without))]
        elif name == "vrpr-separable":
            made[name] = [Contestant(name, separable(profile).with_layers("vrpr"))]
        else:
            made[name] = [Contestant(name, profile.with_layers(name), name.startswith("freelong"))]
    return made, absent
