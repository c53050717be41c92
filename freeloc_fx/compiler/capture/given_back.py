"""What was put onto a transformed model after the transform, given to the original when that is restored.

A transformed model is a shallow copy: adapters and caches that are put on it sit on the modules that both share, and
what says so sits on the copy. The original must know of it to take it off again.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from freeloc_fx.compat import COMPILED_CALL
from freeloc_fx.compat_diffusers import HOOK_NAMES, HOOK_REGISTRY
from freeloc_fx.errors import TransformError

from .gate import GATE
from .hooks import hooks_of
from .swapped import ABSENT

__all__ = ["STATE", "Additions"]

STATE = "_freeloc"
"""Attribute of a transformed model that holds what transform keeps on it."""

_OURS = frozenset({STATE, GATE, COMPILED_CALL, "compile", "compile_repeated_blocks", "forward", *HOOK_NAMES})


class Additions:
    """Knows what a transformed model had when it was made, so that what was put onto it since can be told.

    Args:
        result: the transformed model, as yet a shallow copy.
    """

    def __init__(self, result: nn.Module) -> None:
        if not hooks_of(result):
            # What a cache has left behind leads to the original: hooks put on the copy would be put on that.
            vars(result).pop(HOOK_REGISTRY, None)
        self._see(result)

    def _see(self, result: nn.Module) -> None:
        self._had, self._hooks = _attributes(result), hooks_of(result)

    def give_back(self, original: nn.Module, result: nn.Module) -> None:
        """Put onto the original what was put onto the copy, and take off what was taken off that, since the last time.

        The copy keeps what it has. What was put onto the original meanwhile stays there.

        Args:
            original: the untouched model.
            result: its transformed copy.

        Raises:
            TransformError: other hooks are on the copy itself than were then. They lead to the copy, and what they do
                beyond it, such as moving the weights that both share, the original cannot undo.
        """
        now = hooks_of(result)
        if now != self._hooks:
            raise TransformError(
                f"hooks on this transformed {type(result).__name__} itself have changed since the transform: expected "
                f"{', '.join(self._hooks) or 'none'}, found {', '.join(now) or 'none'}; take off what was put on it "
                "(remove_all_hooks() of its pipeline, or accelerate's remove_hook_from_module), restore it, and put it "
                "on the original; what was taken off belongs taken off before transform"
            )
        has = _attributes(result)
        for name in self._had.keys() | has.keys():
            value = has.get(name, ABSENT)
            if value is self._had.get(name, ABSENT):
                continue
            if value is ABSENT:
                vars(original).pop(name, None)
            else:
                vars(original)[name] = value
        registry: Any = vars(original).get(HOOK_REGISTRY)
        if hasattr(registry, "invalidate_child_registries_cache"):
            registry.invalidate_child_registries_cache()  # hooks have come to modules whose registries it remembers
        self._see(result)


def _attributes(result: nn.Module) -> dict[str, Any]:
    """A model's attributes but for our own and its hooks."""
    return {name: value for name, value in vars(result).items() if name not in _OURS}
