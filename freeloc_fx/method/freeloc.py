"""The parts that FreeLOC itself brings to strategy names, and those that say how text meets the video.

FreeLOC (CVPR 2026) is "vrpr" and "tsa". The temperature "temp" and the parts for text, "squeeze" and "hold", are
additions of this library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from freeloc_fx.errors import StrategyError

from . import checks, solve
from .parts import Part
from .positions import VRPR
from .solve_window import vrpr_sparse
from .strategy import Geometry
from .visibility import TSA, Everything, visible_tokens

__all__ = ["DIRECT", "HOLD", "SQUEEZE", "TEMP", "TSA_PART", "VRPR_PART"]

T = TypeVar("T")


def _from_settings(name: str, kind: type[T], value: Any) -> T:
    """Take a dataclass as it is, or make it from a mapping of its fields."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise StrategyError(f"{name}: expected {kind.__name__} or a mapping of its fields, found {value!r}")
    try:
        return kind(**value)
    except TypeError as error:  # a missing or an unknown field
        raise StrategyError(f"{name}: {error}") from error


def _direct(geometry: Geometry, own: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own attention: nothing is changed."""
    return {}


DIRECT = Part("direct", _direct, sets=())


def _vrpr(geometry: Geometry, own: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Near distances stay, farther ones share positions, so that all lie within the trained range.

    Settings that are not given are solved for the frames that the strategy lets a query see.
    """
    if own is not None:
        return {"positions": _from_settings("vrpr", VRPR, own)}
    rule = given.get("visibility", Everything())
    return {"positions": vrpr_sparse(geometry.trained_frames, rule, geometry.frames, geometry.height, geometry.width)}


VRPR_PART = Part(
    "vrpr",
    _vrpr,
    sets=("positions",),
    value=VRPR,
    words={
        "w1": "an integer from 0, latent frames",
        "w2": "an integer from w1, latent frames",
        "g1": "an integer from 1, latent frames",
        "g2": "an integer from g1, latent frames",
        "quantise": "'pair' or 'separable'",
    },
)


def _tsa(geometry: Geometry, own: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Near frames are seen whole, farther ones along a stripe of tokens, and the first frame by all.

    Settings that are not given are the paper's, scaled to the trained length and the grid.
    """
    value = own if own is not None else solve.tsa(geometry.trained_frames, geometry.height, geometry.width)
    return {"visibility": _from_settings("tsa", TSA, value)}


TSA_PART = Part(
    "tsa",
    _tsa,
    sets=("visibility",),
    value=TSA,
    words={
        "d1": "an integer from 1, latent frames",
        "d2": "an integer from d1, latent frames",
        "ds": "an integer from 1, tokens",
        "sink": "true or false",
        "spatial": "'raster' or '2d'",
    },
)


def _temp(geometry: Geometry, own: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """All scores times sqrt(ln S_long / ln S_trained), S = visible tokens, or times the number that is set.

    More visible tokens raise the entropy of the softmax; a factor above 1 lowers it again.
    """
    if own is not None:
        if not checks.is_number(own, numpy=True) or float(own) <= 0:
            raise StrategyError(f"temperature: expected a positive number, found {own!r}")
        return {"temperature": float(own)}
    rule = given.get("visibility", Everything())
    visible = float(visible_tokens(rule, geometry.frames, geometry.height, geometry.width).mean())
    trained = geometry.trained_frames * geometry.tokens
    if trained < 2 or visible < 2:
        raise StrategyError(f"temp: needs at least two visible tokens, found {trained} trained and {visible:.1f} long")
    return {"temperature": math.sqrt(math.log(visible) / math.log(trained))}


TEMP = Part("temp", _temp, sets=("temperature",), key="temperature", words={"temperature": "a number above 0"})


def _squeeze(geometry: Geometry, own: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Text meets a video token at its place in the clip scaled to the trained length: i (L - 1) / (F - 1)."""
    return {"text_scale": min(1.0, (geometry.trained_frames - 1) / max(1, geometry.frames - 1))}


SQUEEZE = Part("squeeze", _squeeze, sets=("text_scale",))


def _hold(geometry: Geometry, own: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Text meets a video token at its own place up to the last trained frame, and all later ones there: min(i, L - 1).

    It turns by whole frames, unlike "squeeze". The setting `last` is that latent frame, L - 1 unless set.
    """
    last = own.get("last", geometry.trained_frames - 1)
    return {"text_scale": 1.0, "text_last": last}  # the scale too, so that it does not compose with "squeeze"


HOLD = Part("hold", _hold, sets=("text_scale", "text_last"), settings={"last": checks.whole(0)})
