"""What was put onto a transformed model after the transform, given to the original when that is restored.

A transformed model is a shallow copy: adapters, caches and offloading that are put on it sit for the most part on the
modules that both share, and what says so sits on the copy. The original must know of it to take it off again.
"""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from freeloc_fx.compat import COMPILED_CALL, HOOK_NAMES, HOOK_REGISTRY
from freeloc_fx.errors import TransformError

from .gate import GATE, gate_of
from .hooks import hooks_of
from .rebound import CHAIN, Rebound
from .swapped import ABSENT

__all__ = ["STATE", "Onto"]

STATE = "_freeloc"
"""Attribute of a transformed model that holds what transform keeps on it."""

_OURS = frozenset({STATE, GATE, COMPILED_CALL, "compile", "compile_repeated_blocks", *CHAIN})


class Onto:
    """Knows what a transformed model had when it was made, so that what was put onto it since can be told.

    Hooks that are on the original then are made the copy's own: those that hold the original's forward would, once
    taken off or joined by others, change the original in place of the copy.

    Args:
        original: the untouched model.
        result: its shallow copy.
    """

    def __init__(self, original: nn.Module, result: nn.Module) -> None:
        gate = gate_of(result)
        if any(name in vars(original) for name in HOOK_NAMES):
            rebound = Rebound(original, result, gate.innermost)
            if "forward" in vars(original):
                gate.hook(rebound.of(vars(original)["forward"]))
            _put(result, {name: rebound.of(vars(original).get(name, ABSENT)) for name in HOOK_NAMES})
        self._see(original, result)

    def _see(self, original: nn.Module, result: nn.Module) -> None:
        self._had = _attributes(result)
        self._hooks = _hooks(original), _hooks(result)

    def give_back(self, original: nn.Module, result: nn.Module) -> None:
        """Put onto the original what was put onto the copy, and take off what was taken off that, since the last time.

        The copy keeps what it has. What was put onto the original meanwhile stays there.

        Args:
            original: the untouched model.
            result: its transformed copy.

        Raises:
            TransformError: hooks were put on both or taken off both, and which are to be around which is not known.
        """
        gate = gate_of(result)
        own = types.MethodType(type(original).forward, original)
        rebound = Rebound(result, original, own)
        rebound.lead(gate.innermost, own)
        rebound.lead(gate.forward, rebound.of(gate.plain))
        changed = {}
        if _hooks(result) != self._hooks[1]:
            if _hooks(original) != self._hooks[0]:
                raise TransformError(
                    f"hooks on this transformed {type(result).__name__} itself and on its original have both changed "
                    f"since the transform: expected changes on one, found {_named(result)} and {_named(original)}"
                )
            changed = {name: rebound.of(vars(result).get(name, ABSENT)) for name in CHAIN}
            if changed["forward"] is own:
                changed["forward"] = ABSENT
        has = _attributes(result)
        for name in self._had.keys() | has.keys():
            if has.get(name, ABSENT) is not self._had.get(name, ABSENT):
                changed[name] = rebound.of(has.get(name, ABSENT))
        _put(original, changed)
        registry: Any = vars(original).get(HOOK_REGISTRY)
        if hasattr(registry, "invalidate_child_registries_cache"):
            registry.invalidate_child_registries_cache()  # hooks have come to modules whose registries it remembers
        self._see(original, result)


def _attributes(result: nn.Module) -> dict[str, Any]:
    """A model's attributes but for our own and its hooks."""
    return {name: value for name, value in vars(result).items() if name not in _OURS}


def _hooks(model: nn.Module) -> tuple[Any, ...]:
    """What tells the hooks on a model itself from others. A registry without any is none."""
    return vars(model).get("forward"), *hooks_of(model).values()


def _named(model: nn.Module) -> str:
    own = ["a forward of its own"] if "forward" in vars(model) else []
    return ", ".join([*hooks_of(model)] or own) or "none"


def _put(model: nn.Module, values: dict[str, Any]) -> None:
    """Set attributes past what `nn.Module` does with them, or take them away."""
    for name, value in values.items():
        if value is ABSENT:
            vars(model).pop(name, None)
        else:
            vars(model)[name] = value
