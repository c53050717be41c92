"""The fingerprint of a model: the class and config that a profile is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freeloc_fx.compat import unwrapped
from freeloc_fx.errors import PlanError, ProfileError

from .profile_fields import json_object
from .profile_json import FrozenMapping, known_keys, plain, string

__all__ = ["check", "field"]


def field(value: Any) -> Any:
    """Check a profile's field `model`.

    Args:
        value: None, or {"class": class name, "config": {key: value that must match, ...}}.

    Returns:
        The same data, immutable, with an empty config where there was none; None for None.

    Raises:
        ProfileError: the field is malformed; the message begins with the path.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ProfileError(f"model: expected a mapping with class and config, found {value!r}")
    known_keys("model", value, ("class", "config"), ("class",))
    if not string("model.class", value["class"]):
        raise ProfileError("model.class: expected a class name, found ''")
    config = json_object("model.config", value.get("config", {}))
    return FrozenMapping({"class": value["class"], "config": config})


def check(fingerprint: Mapping[str, Any], name: str, model: Any) -> None:
    """Refuse a model that a fingerprint does not fit.

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
        raise PlanError(f"model.class: profile {name!r} is for {expected}, the model is a {type(model).__name__}")
    config = _config(model)
    for key, value in fingerprint["config"].items():
        found = config.get(key, "no such key")
        if key not in config or plain(found) != plain(value):
            raise PlanError(f"model.config.{key}: profile {name!r} expects {plain(value)!r}, the model has {found!r}")


def _config(model: Any) -> Mapping[str, Any]:
    """Give the config of a model as a mapping."""
    config = getattr(model, "config", None)
    if config is not None and not isinstance(config, Mapping):
        config = vars(config)
    if config is None:
        raise PlanError(f"model.config: expected a model with a config, found {type(model).__name__} without one")
    return config
