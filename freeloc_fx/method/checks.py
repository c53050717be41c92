"""Checks of values: what counts as a number here, and what the settings of a part of a strategy's name may be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeGuard

from freeloc_fx.errors import StrategyError

__all__ = ["Check", "each", "fields", "flag", "is_number", "is_whole", "number", "whole"]


def is_whole(value: Any, least: int | None = None, most: int | None = None, *, numpy: bool = False) -> TypeGuard[int]:
    """Tell whether a value is an integer within bounds; True and False are none.

    Args:
        value: anything.
        least: smallest integer that counts, or None for no bound.
        most: largest integer that counts, or None for no bound.
        numpy: whether NumPy's integers count too. They are not JSON, so settings that go into files refuse them.

    Returns:
        Whether it is such an integer.
    """
    kind: Any = Integral if numpy else int
    if isinstance(value, bool) or not isinstance(value, kind):
        return False
    return bool((least is None or value >= least) and (most is None or value <= most))


def is_number(value: Any, *, numpy: bool = False) -> TypeGuard[float]:
    """Tell whether a value is a finite integer or float, not beyond what floats hold; True and False are none.

    Args:
        value: anything.
        numpy: whether NumPy's numbers count too. They are not JSON, so settings that go into files refuse them.

    Returns:
        Whether it is such a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real if numpy else (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


@dataclass(frozen=True)
class Check:
    """What one setting may be. Called with the setting's path and its value, it refuses everything else.

    Args:
        expects: the values that pass, in words, as in "an integer of at least 1".
        passes: tells whether a value passes.
        item: what each value of a list may be, for a setting that is a list; None for any other setting.
    """

    expects: str
    passes: Callable[[Any], bool]
    item: Check | None = None

    def __call__(self, path: str, value: Any) -> None:
        """Refuse a value that does not pass.

        Args:
            path: where the value stands, as in "riflex.k".
            value: the value.

        Raises:
            StrategyError: the value does not pass; the message begins with the path.
        """
        if not self.passes(value):
            raise StrategyError(f"{path}: expected {self.expects}, found {value!r}")
        if self.item is not None:
            for index, item in enumerate(value):
                self.item(f"{path}.{index}", item)


def whole(least: int) -> Check:
    """Make the check of an integer. NumPy's integers are refused, because they are not JSON.

    Args:
        least: smallest integer that passes.
    """
    return Check(f"an integer of at least {least}", lambda value: is_whole(value, least))


def number(above: float, most: float = math.inf) -> Check:
    """Make the check of a finite number. NumPy's numbers are refused, because they are not JSON.

    Args:
        above: the number must be greater than this.
        most: the number must not be greater than this.
    """
    bounds = f"above {above:g}" + ("" if most == math.inf else f" and at most {most:g}")
    return Check(f"a number {bounds}", lambda value: is_number(value) and above < value <= most)


flag = Check("true or false", lambda value: isinstance(value, bool))
"""The check of a truth value."""


def each(check: Check) -> Check:
    """Make the check of a list or tuple of at least one value.

    Args:
        check: what each value must pass.
    """
    return Check("a list of at least one value", lambda value: isinstance(value, (list, tuple)) and bool(value), check)


def fields(name: str, value: object, checks: Mapping[str, Check]) -> None:
    """Check fields of a dataclass.

    Args:
        name: what the paths in messages begin with.
        value: the dataclass's instance.
        checks: names of fields and what each may be; fields that it does not name are not checked.

    Raises:
        StrategyError: a field does not pass.
    """
    for key, check in checks.items():
        check(f"{name}.{key}", getattr(value, key))
