"""What others hang onto a model's modules: hooks that move weights, cast them, or keep results from step to step.

A hook runs Python that no graph can hold. On a block it stays outside the captured graph. On a leaf inside a block (a
linear layer whose weights are brought in for each call) the leaf becomes one opaque operation of the graph. What keeps
an attention's result from step to step cannot be captured at all.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from freeloc_fx.compat import compiled_call, own_hooks, plain_call
from freeloc_fx.compat_diffusers import HOOK_REGISTRY, accelerate_hook, diffusers_hooks, keeps_results
from freeloc_fx.errors import CaptureError, TransformError
from freeloc_fx.graph.leaf import Leaf

from .swapped import ABSENT, swapped

__all__ = [
    "HOOKED",
    "Leaves",
    "blocks_of",
    "check_blocks",
    "check_devices",
    "hooks_hidden",
    "hooks_of",
    "inside",
    "outside_hooks",
    "without_caches",
]


HOOKED = "the blocks carry hooks, which stay outside the graphs"


def hooks_of(module: nn.Module) -> dict[str, Any]:
    """Name -> hook of diffusers' registry, or accelerate's, on one module."""
    found = dict(diffusers_hooks(module))
    if (hook := accelerate_hook(module)) is not None:
        found[type(hook).__name__] = hook
    return found


def inside(block: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """(path, module, hooks) of every hooked module strictly inside a block."""
    for path, module in block.named_modules():
        if path and (hooks := hooks_of(module)):
            yield path, module, hooks


def blocks_of(model: nn.Module, layers: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """(path, module) of a transformed model's blocks, which must be as many as it was transformed with.

    Args:
        model: transformed.
        layers: module paths of the blocks that it was transformed with.

    Raises:
        TransformError: a block is gone, or another has come; the profile says nothing of the blocks as they are.
    """
    paths = list(layers)
    said = f"{type(model).__name__}: expected the {len(paths)} blocks that it was transformed with"
    again = "; restore(model) gives the original back, to be transformed as it is now"
    found = []
    for path in paths:
        try:
            found.append((path, model.get_submodule(path)))
        except AttributeError:
            raise TransformError(f"{said}, found none at {path}{again}") from None
    for parent, count in Counter(path.rpartition(".")[0] for path in paths).items():
        blocks = model.get_submodule(parent)
        # Of another container it is enough that each of ours was found.
        counted = isinstance(blocks, (nn.ModuleList, nn.Sequential))
        there = len(dict(blocks.named_children())) if counted else count  # a block that runs twice has one path
        if there != count:
            raise TransformError(f"{said}, {count} of them in {parent}, found {there} there{again}")
    return found


def check_blocks(blocks: Iterable[tuple[str, nn.Module]]) -> bool:
    """Whether any block carries hooks, on itself or inside, so that blocks must be captured one by one.

    Args:
        blocks: (path, module) of the transformer blocks.

    Returns:
        True for blocks with hooks.

    Raises:
        TransformError: a block is compiled on its own; our capture would run it as if it were not.
        CaptureError: a hook inside a block keeps results from call to call: a graph captured while it computes would
            never see it skip, and the other way round.
    """
    found = False
    for prefix, block in blocks:
        if compiled_call(block) is not None:
            raise TransformError(
                f"{prefix} ({type(block).__name__}) is already compiled; expected the blocks of a transformed model "
                "uncompiled: choose the backend in transform"
            )
        found = found or bool(hooks_of(block))
        for path, module, hooks in inside(block):
            found = True
            for name, hook in hooks.items():
                if keeps_results(hook):
                    raise CaptureError(
                        f"{prefix}.{path} ({type(module).__name__}) carries the hook {name!r}, which keeps an "
                        "attention's result from step to step; expected caches on whole blocks only, such as "
                        "FirstBlockCache: disable_cache() first"
                    )
    return found


def check_devices(model: nn.Module) -> None:
    """Refuse a model that accelerate's `device_map` has spread over devices: its hooks move every module's inputs.

    Args:
        model: with its hooks in place.

    Raises:
        CaptureError: names the devices.
    """
    places = sorted({str(device) for device in (getattr(model, "hf_device_map", None) or {}).values()})
    if len(places) > 1:
        raise CaptureError(
            f"{type(model).__name__}: device_map spreads its modules over {', '.join(places)}; expected one device: "
            "enable_group_offload, FSDP2 or tensor parallelism share out the weights of a transformed model"
        )


def outside_hooks(model: nn.Module, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a model's call inside of the hooks that PyTorch runs around it, which no graph then holds.

    A hook that computes is a frame of its own to Dynamo, and would be captured as if it were the model.

    Args:
        model: with hooks of its own (`register_forward_hook` and the like) or none.
        call: what is to run in place of the model's forward; it meets the model without these hooks.
        args: of the model.
        kwargs: of the model.

    Returns:
        What the outermost hook gives.
    """
    forward = vars(model).get("forward", ABSENT)

    def inner(*args: Any, **kwargs: Any) -> Any:
        with swapped(model, "forward", forward), hooks_hidden(model):
            return call(*args, **kwargs)

    if not any(vars(model)[name] for name in own_hooks(model)):
        return call(*args, **kwargs)
    with swapped(model, "forward", inner):
        return plain_call(model)(*args, **kwargs)


@contextmanager
def hooks_hidden(model: nn.Module) -> Iterator[None]:
    """Context: a model has none of the hooks that PyTorch runs around its call; those that come meanwhile stay.

    Args:
        model: itself, not what is inside it.
    """
    with ExitStack() as put:
        for name in own_hooks(model):
            if known := vars(model)[name]:
                come: dict[str, Any] = OrderedDict()
                put.callback(known.update, come)
                put.enter_context(swapped(model, name, come))
        yield


@contextmanager
def without_caches(model: nn.Module) -> Iterator[None]:
    """Context: modules that keep results from call to call forget their hooks, so that nothing is kept of a capture
    whose numbers nobody wants.

    Args:
        model: whose modules are looked through.
    """
    with ExitStack() as taken:
        for module in model.modules():
            if "forward" in vars(module) and any(map(keeps_results, hooks_of(module).values())):
                taken.enter_context(swapped(module, "forward", ABSENT))
                taken.enter_context(swapped(module, HOOK_REGISTRY, ABSENT))
        yield


class Leaves:
    """The hooked leaves of some blocks, as opaque operations.

    Args:
        blocks: (path, module) of the transformer blocks.
    """

    def __init__(self, blocks: Iterable[tuple[str, nn.Module]]) -> None:
        self.blocks = list(blocks)
        self.leaves: dict[str, Leaf] = {}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context: a call of a hooked leaf is one operation of the graph."""
        with ExitStack() as put:
            for prefix, block in self.blocks:
                for path, module, _ in inside(block):
                    if next(module.children(), None) is not None:
                        continue
                    name = f"{prefix}.{path}"
                    leaf = self.leaves.get(name)
                    if leaf is None or leaf.call is not module.forward:
                        leaf = self.leaves[name] = Leaf(name, module)
                    put.enter_context(swapped(module, "forward", leaf.stand_in))
            yield
