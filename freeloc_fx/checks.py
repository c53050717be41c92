"""Checks of settings: functions of (path, value) that raise StrategyError. Values must be plain JSON data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .errors import StrategyError

__all__ = ["Check", "each", "fields", "flag", "number", "whole"]

Check = Callable[[str, Any], None]


def whole(least: int) -> Check:
    """An integer of at least `least`. NumPy's are refused, because they are not JSON."""

    def check(path: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise StrategyError(f"{path}: expected an integer of at least {least}, found {value!r}")

    return check


def number(above: float, most: float = math.inf) -> Check:
    """A finite number in (above, most]."""

    def check(path: str, value: Any) -> None:
        valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not valid or not above < value <= most:
            bounds = f"above {above:g}" + ("" if most == math.inf else f" and at most {most:g}")
            raise StrategyError(f"{path}: expected a number {bounds}, found {value!r}")

    return check


def flag(path: str, value: Any) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise StrategyError(f"{path}: expected true or false, found {value!r}")


def each(check: Check) -> Check:
    """A list or tuple of at least one value that passes `check`."""

    def check_all(path: str, value: Any) -> None:
        if not isinstance(value, (list, tuple)) or not value:
            raise StrategyError(f"{path}: expected a list of at least one value, found {value!r}")
        for index, item in enumerate(value):
            check(f"{path}.{index}", item)

    return check_all


def fields(name: str, value: object, checks: Mapping[str, Check]) -> None:
    """Check the fields of a dataclass."""
    for key, check in checks.items():
        check(f"{name}.{key}", getattr(value, key))
