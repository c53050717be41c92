"""What hangs on one model, made over to another that shares its submodules: hooks, wrapped forwards, methods.

Hooks of diffusers and accelerate hold the module that they were put on: by the function that they put in place of its
forward, by diffusers' registry, by what a hook keeps. On a copy they would lead to the original, and the other way
round.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from freeloc_fx.compat import HOOK_NAMES, HOOK_REGISTRY, diffusers_hooks

__all__ = ["CHAIN", "Rebound"]

CHAIN = ("forward", *HOOK_NAMES)
"""Attributes of a module that together are its hooks: the function in place of its forward, and who put it there."""

_FUNCTIONS = (types.FunctionType, types.MethodType, partial)


class Rebound:
    """Values that lead to one model, as they are where they lead to another; all others are left as they are.

    What was made is made once, so that a hook which is met twice stays one hook. What hooks keep from call to call they
    share with those that they were made of.

    Args:
        old: the model that values lead to.
        new: the model that they are to lead to.
        own: what is to stand for the old model's own forward, that of its class.
    """

    def __init__(self, old: nn.Module, new: nn.Module, own: Callable[..., Any]) -> None:
        self.old, self.own = old, own
        self._made: dict[int, Any] = {id(old): new}
        hooks = diffusers_hooks(old).values()
        parts = [vars(old).get(HOOK_REGISTRY), *hooks, *(hook.fn_ref for hook in hooks)]
        self._parts = {id(part) for part in parts if part is not None}
        self._kept: list[Any] = []  # for as long as their ids are keys

    def lead(self, function: Callable[..., Any], instead: Callable[..., Any]) -> None:
        """Say what is to stand for a function at which a wrapped forward may end.

        Args:
            function: as it is met.
            instead: what stands for it.
        """
        self._made[id(function)] = instead
        self._kept.append(function)

    def of(self, value: Any) -> Any:
        """A value that leads to the new model where it led to the old one; itself where it did not.

        Args:
            value: an attribute of the old model, or what one holds.
        """
        if id(value) not in self._made:
            self._kept.append(value)
            self._made[id(value)] = value  # of one that leads back to itself
            self._made[id(value)] = self._anew(value)
        return self._made[id(value)]

    def _anew(self, value: Any) -> Any:
        if id(value) in self._parts:
            return self._part(value)
        if isinstance(value, types.MethodType):
            if value.__self__ is self.old and value.__func__ is type(self.old).forward:
                return self.own
            owner = self.of(value.__self__)
            return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
        if isinstance(value, partial):
            args, named = tuple(map(self.of, value.args)), {key: self.of(one) for key, one in value.keywords.items()}
            return self._named(value, partial(self.of(value.func), *args, **named))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if callable(value) and not isinstance(value, (nn.Module, type)) and hasattr(value, "__dict__"):
            held = {name: self.of(one) for name, one in vars(value).items() if isinstance(one, _FUNCTIONS)}
            return self._with(value, held)
        return value

    def _function(self, value: types.FunctionType) -> Any:
        """A function whose closure leads to the new model."""
        cells = tuple(map(self._cell, value.__closure__ or ()))
        made = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, cells)
        made.__kwdefaults__, made.__qualname__, made.__doc__ = value.__kwdefaults__, value.__qualname__, value.__doc__
        made.__module__, made.__annotations__ = value.__module__, value.__annotations__
        return self._named(value, made)

    def _cell(self, cell: Any) -> Any:
        try:
            value = cell.cell_contents
        except ValueError:  # nothing yet
            return cell
        made = self.of(value)
        return cell if made is value else types.CellType(made)

    def _named(self, value: Any, made: Any) -> Any:
        """`made` with what stands on the function `value`, such as `__wrapped__`; `value` where they are the same."""
        held = {name: self.of(one) for name, one in vars(value).items()}
        if isinstance(value, partial):
            same = made.func is value.func and all(a is b for a, b in zip(made.args, value.args, strict=True))
            same = same and all(made.keywords[key] is one for key, one in value.keywords.items())
        else:
            same = all(a is b for a, b in zip(made.__closure__ or (), value.__closure__ or (), strict=True))
        if same and all(held[name] is one for name, one in vars(value).items()):
            return value
        vars(made).update(held)
        return made

    def _with(self, value: Any, held: dict[str, Any]) -> Any:
        """A copy of an object with these attributes; itself where they are what it has."""
        if all(vars(value)[name] is one for name, one in held.items()):
            return value
        made = copy.copy(value)
        vars(made).update(held)
        return made

    def _part(self, value: Any) -> Any:
        """A part of diffusers' registry once more, all of it."""
        made = self._made[id(value)] = object.__new__(type(value))
        for name, one in vars(value).items():
            vars(made)[name] = self._held(one)
        return made

    def _held(self, value: Any) -> Any:
        """What a part of the registry holds: collections of it, and objects that know their module."""
        if type(value) is dict:
            return {key: self._held(one) for key, one in value.items()}
        if type(value) in (list, tuple):
            return type(value)(map(self._held, value))
        made = self.of(value)
        if (
            made is value
            and type(getattr(value, "__dict__", None)) is dict
            and not isinstance(value, (nn.Module, type))
        ):
            # Such as a group of offloaded modules, which moves when its leader is called.
            made = self._with(value, {name: self.of(one) for name, one in vars(value).items() if one is self.old})
            self._made[id(value)] = made
        return made
