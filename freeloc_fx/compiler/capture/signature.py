"""What a module's code depends on beside the values of its tensors: which blocks are alike, and what has changed.

Dynamo guards what it traced. It does not look at hooks that were registered after a trace, nor at blocks that it has
stamped out of another one, so a capture with those is taken anew where this says that something is different.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import weakref
from collections.abc import Hashable, Iterator, Mapping, Set
from typing import Any, Final

import torch
from torch import nn

__all__ = ["Signature", "alike", "difference", "signature"]

Signature = tuple[tuple[str, Hashable], ...]
"""(path of a module or of what it holds, what is there) of everything that was looked at, in order."""

_PLAIN: Final = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)

_HOOKS: Final = ("_forward_pre_hooks", "_forward_hooks")

_OWN: Final = frozenset(vars(nn.Module())) - {"training"}
"""Attributes that every module has; what these hold is looked at in other ways."""

_DEPTH: Final = 6


class _Same:
    """Equal for one object only, which it does not keep alive where that can be."""

    __slots__ = ("number", "ref")

    def __init__(self, value: Any) -> None:
        self.number = id(value)
        try:
            self.ref: Any = weakref.ref(value)
        except TypeError:
            self.ref = lambda: value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Same) or self.number != other.number:
            return False
        value = self.ref()
        return value is not None and value is other.ref()

    def __hash__(self) -> int:
        return self.number


def signature(model: nn.Module, blocks: Mapping[str, nn.Module]) -> Signature:
    """Look at what captures of a model depend on and Dynamo's guards may not tell.

    Of every module its hooks; of those in the blocks also class, code of the forward, settings, plain values and
    attention processors. What a module keeps from call to call (tensors, objects of unknown kinds) is left out, since
    a capture is not taken anew for that, and so is which modules there are outside of the blocks, which Dynamo guards.

    Args:
        model: with its hooks, and without what we put on it while it runs.
        blocks: path -> transformer block, as the model has them now.

    Returns:
        Equal for two moments between which none of that changed.
    """
    found: list[tuple[str, Hashable]] = []
    inside = set()
    for prefix, block in blocks.items():
        found.append((prefix, _Same(block)))
        for path, module in block.named_modules(prefix=prefix):
            inside.add(id(module))
            found.extend(_module(path, module, strict=False))
    for path, module in model.named_modules():
        # The model's own call is ours, and its hooks run outside of it.
        if path and id(module) not in inside:
            found.extend(_hooks(path, module))
    return tuple(found)


def alike(block: nn.Module) -> Signature:
    """Look at everything that makes one block's code another's, but for the values of its parameters and buffers.

    Args:
        block: a module.

    Returns:
        Equal for blocks one of which may be traced for the other.
    """
    found: list[tuple[str, Hashable]] = []
    for path, module in block.named_modules():
        found.extend(_module(path, module, strict=True))
        for kind in (module._parameters, module._buffers):
            for name, value in kind.items():
                known = None if value is None else (type(value), value.dtype, value.shape, value.device)
                found.append((f"{path}.{name}", known))
    return tuple(found)


def difference(before: Signature, now: Signature) -> str:
    """Say where two signatures differ first.

    Args:
        before: the one of earlier.
        now: the other.

    Returns:
        A path.
    """
    for one, other in zip(before, now, strict=False):
        if one != other:
            return other[0]
    return (now if len(now) > len(before) else before)[min(len(now), len(before))][0]


def _hooks(path: str, module: nn.Module) -> Iterator[tuple[str, Hashable]]:
    for name in _HOOKS:
        if hooks := vars(module)[name]:
            yield f"{path} ({name.strip('_').replace('_', ' ')})", tuple(map(_Same, hooks.values()))


def _module(path: str, module: nn.Module, strict: bool) -> Iterator[tuple[str, Hashable]]:
    yield path, (type(module), type(module).forward)
    yield from _hooks(path, module)
    for name, value in sorted(vars(module).items()):
        if name not in _OWN:
            yield f"{path}.{name}", _frozen(value, module, strict, _DEPTH)


def _frozen(value: Any, owner: Any, strict: bool, depth: int) -> Hashable:
    """What a value is, hashable.

    Args:
        value: of an attribute.
        owner: what has the attribute.
        strict: whether two objects of a kind that is not known are different.
        depth: how deep to look into what holds others.
    """
    kind = type(value)
    if kind in _PLAIN:
        return kind, value
    if isinstance(value, torch.Tensor):
        return _Same(value) if strict else torch.Tensor
    if isinstance(value, (nn.Module, type, types.FunctionType, types.BuiltinFunctionType)):
        return _Same(value)
    if isinstance(value, types.MethodType):
        return _Same(value.__func__), "itself" if value.__self__ is owner else _Same(value.__self__)
    parts = _parts(value) if depth else None
    if parts is None:
        return (kind, _Same(value)) if strict else (kind,)
    return kind, *(_frozen(part, owner, strict, depth - 1) for part in parts)


def _parts(value: Any) -> list[Any] | None:
    """What an object of a kind that is known is made of; None for others."""
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, Set):
        return sorted(value, key=repr)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.items()]
    # An attention processor, or settings.
    if callable(value) or dataclasses.is_dataclass(value) or isinstance(value, types.SimpleNamespace):
        held = getattr(value, "__dict__", None)
        code = [vars(kind)["__call__"] for kind in type(value).__mro__ if "__call__" in vars(kind)][:1]
        return None if held is None else [*code, *sorted(held.items())]
    return None
