"""Settings of VRPR and TSA in profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, cast

from freeloc_fx.errors import ProfileError, StrategyError
from freeloc_fx.method.positions import VRPR
from freeloc_fx.method.visibility import TSA

from .profile_json import integer, known_keys

__all__ = ["SizedTSA", "tiers"]


@dataclass(frozen=True)
class SizedTSA:
    """TSA settings that hold for one resolution only; at others TSA is solved.

    Args:
        settings: the settings.
        tokens: the number of tokens of one latent frame for which they hold, at least 1.
    """

    settings: TSA
    tokens: int


def tiers(kind: str, path: str, value: Any, quantise: str) -> VRPR | TSA | SizedTSA:
    """Check settings of VRPR or TSA, and make them from a mapping of fields.

    Args:
        kind: "vrpr" or "tsa".
        path: where the value stands in the profile, as in "vrpr.41".
        value: `VRPR`, `TSA`, `SizedTSA`, or a mapping of the fields; TSA's may add "tokens".
        quantise: "pair" or "separable", for a mapping of VRPR's fields that does not say.

    Returns:
        The settings; `SizedTSA` where they name a number of tokens.

    Raises:
        ProfileError: the value is malformed; the message begins with the path.
    """
    cls = VRPR if kind == "vrpr" else TSA
    if isinstance(value, cls):
        return value
    if kind == "tsa" and isinstance(value, SizedTSA):
        integer(f"{path}.tokens", value.tokens, 1)
        return value
    if not isinstance(value, Mapping):
        raise ProfileError(f"{path}: expected {cls.__name__} or a mapping of its fields, found {value!r}")
    names = tuple(field.name for field in fields(cls))
    required = ("w1", "w2", "g1", "g2") if kind == "vrpr" else ("d1", "d2", "ds")
    known_keys(path, value, names if kind == "vrpr" else (*names, "tokens"), required)
    given = dict(value)
    tokens = given.pop("tokens", None)
    if kind == "vrpr":
        given.setdefault("quantise", quantise)
    elif not isinstance(given.get("sink", True), bool):
        raise ProfileError(f"{path}.sink: expected true or false, found {given['sink']!r}")
    try:
        made = cls(**given)
    except StrategyError as error:  # its message begins with the kind
        raise ProfileError(path + str(error).removeprefix(kind)) from error
    except TypeError as error:
        raise ProfileError(f"{path}: {error}") from error
    if "tokens" not in value:
        return made
    return SizedTSA(cast(TSA, made), integer(f"{path}.tokens", tokens, 1))
