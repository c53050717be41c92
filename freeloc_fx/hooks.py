"""What others hang onto a model's modules: hooks that move weights, cast them, or keep results from step to step.

A hook runs Python that no graph can hold. On a block it stays outside the captured graph. On a leaf inside a block (a
linear layer whose weights are brought in for each call) the leaf becomes one opaque operation of the graph. What keeps
an attention's result from step to step cannot be captured at all.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .errors import CaptureError, TransformError

__all__ = ["check_blocks", "hooks_of", "inside", "leaf_call", "leaf_calls", "slot", "without_caches"]


def hooks_of(module: nn.Module) -> dict[str, Any]:
    """Name -> hook of diffusers' registry, or accelerate's, on one module."""
    found = dict(getattr(module.__dict__.get("_diffusers_hook"), "hooks", {}))
    if "_hf_hook" in module.__dict__:
        found[type(module.__dict__["_hf_hook"]).__name__] = module.__dict__["_hf_hook"]
    return found


def slot(module: nn.Module) -> tuple[Any, str]:
    """(object, attribute) that holds a block's call inside its hooks, which cannot be captured."""
    refs = getattr(module.__dict__.get("_diffusers_hook"), "_fn_refs", None)
    if refs:
        return refs[0], "forward" if refs[0].original_forward is None else "original_forward"
    if "_hf_hook" in module.__dict__:
        return module, "_old_forward"
    return module, "_compiled_call_impl"


def inside(block: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """(path, module, hooks) of every hooked module strictly inside a block."""
    for path, module in block.named_modules():
        if path and (hooks := hooks_of(module)):
            yield path, module, hooks


def check_blocks(blocks: Iterable[tuple[str, nn.Module]]) -> bool:
    """Whether any block carries hooks, on itself or inside, so that blocks must be captured one by one.

    Args:
        blocks: (path, module) of the transformer blocks.

    Raises:
        TransformError: a block is compiled on its own; our capture would run it as if it were not.
        CaptureError: a hook inside a block keeps results from call to call: a graph captured while it computes would
            never see it skip, and the other way round.
    """
    found = False
    for prefix, block in blocks:
        if block._compiled_call_impl is not None:
            raise TransformError(
                f"{prefix} ({type(block).__name__}) is already compiled; expected the blocks of a transformed model "
                "uncompiled: choose the backend in transform"
            )
        found = found or bool(hooks_of(block))
        for path, module, hooks in inside(block):
            found = True
            for name, hook in hooks.items():
                if _keeps(hook):
                    raise CaptureError(
                        f"{prefix}.{path} ({type(module).__name__}) carries the hook {name!r}, which keeps an "
                        "attention's result from step to step; expected caches on whole blocks only, such as "
                        "FirstBlockCache: disable_cache() first"
                    )
    return found


def _keeps(hook: Any) -> bool:
    """Whether a hook remembers results; some share what another of them keeps."""
    return getattr(hook, "_is_stateful", False) or hasattr(hook, "state_manager")


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Context: modules that keep results from call to call forget their hooks, so that nothing is kept of a capture
    whose numbers nobody wants."""
    taken = []
    for module in model.modules():
        if "forward" in module.__dict__ and any(map(_keeps, hooks_of(module).values())):
            taken.append((module, module.__dict__.pop("forward"), module.__dict__.pop("_diffusers_hook")))
    try:
        yield
    finally:
        for module, forward, registry in taken:
            module.__dict__ |= {"forward": forward, "_diffusers_hook": registry}


_CALLS: weakref.WeakValueDictionary[str, _Leaf] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()  # two transformed copies of one model have leaves of their own


class _Leaf:
    """One hooked module without children and how it is called: x (..., channels) -> (..., channels out)."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.key = f"{path}#{next(_NUMBERS)}"
        self.call: Callable[..., Any] = module.forward
        self.results: dict[tuple[int, torch.dtype, torch.device], torch.Tensor] = {}
        _CALLS[self.key] = self

    def like(self, x: torch.Tensor) -> torch.Tensor:
        """A row of zeros through the module: its result tells channels and dtype of any other."""
        known = (int(x.shape[-1]), x.dtype, x.device)
        if known not in self.results:
            with unset_fake_temporarily(), torch.no_grad():
                row = torch.zeros((1,) * (x.ndim - 1) + (known[0],), dtype=x.dtype, device=x.device)
                self.results[known] = self.call(row)
        return self.results[known]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the module's forward during a capture."""
        if len(args) != 1 or kwargs:
            return self.call(*args, **kwargs)
        return torch.ops.freeloc_fx.leaf_call.default(args[0], self.key)


@torch.library.custom_op("freeloc_fx::leaf_call", mutates_args=())
def leaf_call(x: torch.Tensor, leaf: str) -> torch.Tensor:
    """Call a hooked leaf with its hooks.

    x: (..., channels), any dtype that the module takes. leaf: key of a `_Leaf` that lives. Returns (..., channels out).
    """
    known = _CALLS.get(leaf)
    if known is None:
        raise CaptureError(f"leaf call {leaf!r}: expected a module of a transformed model that lives, found none")
    result: torch.Tensor = known.call(x).contiguous()
    return result.clone() if result.data_ptr() == x.data_ptr() else result  # an operator's result is its own


@leaf_call.register_fake
def _(x: torch.Tensor, leaf: str) -> torch.Tensor:
    row = _CALLS[leaf].like(x)
    return x.new_empty((*x.shape[:-1], row.shape[-1]), dtype=row.dtype)


class leaf_calls:
    """Context: the hooked leaves of some blocks are opaque operations.

    Args:
        blocks: (path, module) of the transformer blocks.
    """

    def __init__(self, blocks: Iterable[tuple[str, nn.Module]]) -> None:
        self.blocks = list(blocks)
        self.leaves: dict[str, _Leaf] = {}

    def __enter__(self) -> None:
        self.replaced: list[tuple[nn.Module, Any]] = []
        for prefix, block in self.blocks:
            for path, module, _ in inside(block):
                if next(module.children(), None) is not None:
                    continue
                name = f"{prefix}.{path}"
                leaf = self.leaves.get(name)
                if leaf is None or leaf.call is not module.forward:
                    leaf = self.leaves[name] = _Leaf(name, module)
                self.replaced.append((module, leaf.call))
                module.forward = leaf.forward

    def __exit__(self, *_: object) -> None:
        for module, forward in self.replaced:
            module.forward = forward
