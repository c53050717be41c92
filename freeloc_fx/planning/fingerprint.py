"""The fingerprint of a model: the class and config that a profile is for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from freeloc_fx.compat import unwrapped
from freeloc_fx.errors import PlanError, ProfileError
from freeloc_fx.method.checks import is_whole

from .profile_fields import json_object
from .profile_json import FrozenMapping, known_keys, plain, string

__all__ = ["by_weights", "check", "field"]

_SHAPE = re.compile(r"\d+ x \d+")


def field(value: Any) -> Any:
    """Check a profile's field `model`.

    Args:
        value: None, or {"class": class name, "config": {key: value that must match, ...}, "weights": {"rows x columns":
            how many matrices of the model are of that shape, ...}}; the last may be missing.

    Returns:
        The same data, immutable, with an empty config where there was none; None for None.

    Raises:
        ProfileError: the field is malformed; the message begins with the path.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"model: expected a mapping with class and config, found {value!r}")
    known_keys("model", value, ("class", "config", "weights"), ("class",))
    if not string("model.class", value["class"]):
        raise ProfileError("model.class: expected a class name, found ''")
    config = json_object("model.config", value.get("config", {}))
    result = {"class": value["class"], "config": config}
    if "weights" in value:
        result["weights"] = json_object("model.weights", value["weights"])
        for shape, count in result["weights"].items():
            if not _SHAPE.fullmatch(shape) or not is_whole(count, 1):
                raise ProfileError(f"model.weights: expected 'rows x columns' and a count, found {shape!r}: {count!r}")
    return FrozenMapping(result)


def check(fingerprint: Mapping[str, Any], name: str, model: Any) -> None:
    """Refuse a model that a fingerprint does not fit.

    A model of another class, as another code base has for the same weights, fits by its matrices where the fingerprint
    counts them.

    Args:
        fingerprint: a profile's field `model`.
        name: the profile's name, for messages.
        model: a diffusers transformer, or anything with `.config`, compiled or not.

    Raises:
        PlanError: the model's class or config differs; the message begins with the path of what differs.
    """
    model = unwrapped(model)
    expected = fingerprint["class"]
    if expected not in {cls.__name__ for cls in type(model).__mro__}:
        if by_weights(fingerprint, model):
            return
        raise PlanError(f"model.class: profile {name!r} is for {expected}, the model is a {type(model).__name__}")
    config = _config(model)
    for key, value in fingerprint["config"].items():
        found = config.get(key, "no such key")
        if key not in config or plain(found) != plain(value):
            raise PlanError(f"model.config.{key}: profile {name!r} expects {plain(value)!r}, the model has {found!r}")


def by_weights(fingerprint: Mapping[str, Any], model: Any) -> bool:
    """Whether a model has just as many matrices of each shape as a fingerprint counts; False where it counts none.

    Args:
        fingerprint: a profile's field `model`.
        model: any module.
    """
    wanted = fingerprint.get("weights")
    if not wanted or not isinstance(model, nn.Module):
        return False
    found = Counter(" x ".join(map(str, p.shape)) for p in model.parameters() if p.ndim == 2)
    return all(found[shape] == count for shape, count in wanted.items())


def _config(model: Any) -> Mapping[str, Any]:
    """Give the config of a model as a mapping."""
    config = getattr(model, "config", None)
    if config is not None and not isinstance(config, Mapping):
        config = vars(config)
    if config is None:
        raise PlanError(f"model.config: expected a model with a config, found {type(model).__name__} without one")
    return config
