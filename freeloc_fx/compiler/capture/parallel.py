"""How the tokens of a model are shared out over ranks, as diffusers' context parallelism has set it up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from freeloc_fx.attention.exchange import gather_along
from freeloc_fx.compat_diffusers import PARALLEL, keeps_results, sharding_hooks, token_group
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.shards import Shards

from .hooks import hooks_of
from .swapped import swapped

__all__ = [
    "TokenGroup",
    "can_exchange",
    "exchange_themselves",
    "gathering",
    "shared_at",
    "token_group_of",
    "unsharded",
    "without_exchange",
]


@dataclass(frozen=True)
class TokenGroup:
    """The ranks that share out a model's tokens.

    Args:
        shards: the ranks.
        name: of their process group.
        anything: they share out what they do not divide, too.
    """

    shards: Shards
    name: str
    anything: bool = False


def token_group_of(model: nn.Module) -> TokenGroup | None:
    """The ranks that share out a model's tokens; None where nobody does.

    Every rank of a model that is set up alike comes to the same answer, or error, without asking the others.

    Args:
        model: with whatever hooks and processors it has.

    Raises:
        CaptureError: the tokens are exchanged in a way that a long attention cannot take part in.
    """
    name = type(model).__name__
    hooks = [hook for module in model.modules() for hook in sharding_hooks(module)]
    configs = [hook.parallel_config for hook in hooks]
    exchanging = [config for one in _processors(model) if (config := _context(getattr(one, PARALLEL))) is not None]
    if not configs and not exchanging:
        return None
    config = (configs or exchanging)[0]
    if not configs:
        raise CaptureError(
            f"{name}: attention processors exchange tokens, but no hook shares them out; expected both, as "
            "enable_parallelism(config=ContextParallelConfig(ulysses_degree=N)) sets them up"
        )
    if any(other is not config for other in [*configs, *exchanging]):
        raise CaptureError(f"{name}: expected one ContextParallelConfig for the whole model, found several")
    if config.ring_degree > 1:
        raise CaptureError(
            f"{name}: ContextParallelConfig(ring_degree={config.ring_degree}): ring attention passes keys on rank by "
            "rank, and no rank ever holds what a long attention needs; expected ulysses_degree="
            f"{config.ring_degree * config.ulysses_degree} with ring_degree=1"
        )
    for path, module in model.named_modules():
        kept = [key for key, hook in hooks_of(module).items() if keeps_results(hook)]
        if kept:
            raise CaptureError(
                f"{name}: {path} carries the hook {kept[0]!r}, by which each rank decides on its own tokens whether to "
                "compute, and ranks that decide differently wait for each other forever; disable_cache() first"
            )
    group, ranks, rank = token_group(config)
    return TokenGroup(Shards(ranks, rank), group, bool(getattr(config, "ulysses_anything", False)))


def _context(config: Any) -> Any:
    """The ContextParallelConfig of what an attention processor holds; None for none."""
    return getattr(config, "context_parallel_config", None)


def _processors(model: nn.Module) -> Iterator[Any]:
    """Every attention processor of a model that can exchange tokens, once."""
    found = {id(one): one for module in model.modules() if (one := getattr(module, "processor", None)) is not None}
    return (one for one in found.values() if hasattr(one, PARALLEL))


def exchange_themselves(model: nn.Module, blocks: Iterable[str]) -> bool:
    """Whether all attention processors in a model's blocks exchange tokens, as those that diffusers has fitted do.

    Args:
        model: whose tokens are shared out.
        blocks: module paths of its transformer blocks.
    """
    found = _inside(model, blocks)
    return bool(found) and all(_context(getattr(one, PARALLEL, None)) is not None for one in found)


def can_exchange(model: nn.Module, blocks: Iterable[str]) -> bool:
    """Whether all attention processors in a model's blocks would exchange tokens, once diffusers has fitted them.

    Args:
        model: whose tokens are not shared out.
        blocks: module paths of its transformer blocks.
    """
    found = _inside(model, blocks)
    return bool(found) and all(hasattr(one, PARALLEL) for one in found)


def shared_at(model: nn.Module, blocks: Iterable[str]) -> frozenset[str]:
    """Arguments of a model's blocks, by name, that are tokens with channels and shared out where they enter.

    Args:
        model: whose tokens are shared out.
        blocks: module paths of its transformer blocks.
    """
    hooks = [hook for path in blocks for hook in sharding_hooks(model.get_submodule(path))]
    given = [one for hook in hooks if isinstance(hook.metadata, dict) for one in hook.metadata.items()]
    # Tokens have a batch and channels; there are tables among what is given to blocks, too.
    return frozenset(
        str(name) for name, one in given if getattr(one, "split_dim", None) == 1 and one.expected_dims == 3
    )


def _inside(model: nn.Module, blocks: Iterable[str]) -> list[Any]:
    """The attention processors of a model's blocks."""
    inside = [module for path in blocks for module in model.get_submodule(path).modules()]
    return [one for module in inside if (one := getattr(module, "processor", None)) is not None]


@contextmanager
def without_exchange(model: nn.Module) -> Iterator[None]:
    """Context: attention processors exchange nothing, each works on the tokens that it is given.

    Args:
        model: whose processors are meant.
    """
    with ExitStack() as put:
        for processor in _processors(model):
            put.enter_context(swapped(processor, PARALLEL, None))
        yield


@contextmanager
def gathering(group: TokenGroup) -> Iterator[None]:
    """Context: gather hooks take shares of any sizes on any backend; gloo's own gather takes equal ones only.

    Args:
        group: the ranks.
    """
    from diffusers.hooks.context_parallel import PartitionAnythingSharder

    def unshard(tensor: torch.Tensor, dim: int, mesh: Any) -> torch.Tensor:
        own = torch.tensor([tensor.shape[dim]], device=tensor.device)
        sizes = [torch.empty_like(own) for _ in range(group.shards.ranks)]
        torch.distributed.all_gather(sizes, own, group=mesh.get_group())
        tokens = sum(int(size) for size in sizes)
        return gather_along(tensor, group.shards, tokens, tensor.shape, dim % tensor.ndim, group.name)

    with swapped(PartitionAnythingSharder, "unshard_anything", staticmethod(unshard)):
        yield


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Context: no hook shares out tokens or gathers them, and nobody exchanges any: the model as one process has it.

    Args:
        model: with its hooks in place.
    """
    with ExitStack() as put:
        for module in model.modules():
            for hook in sharding_hooks(module):
                # What a split hook looks up is one mapping; a gather hook counts what it was given.
                off = {} if isinstance(hook.metadata, dict) else [None] * len(hook.metadata)
                put.enter_context(swapped(hook, "metadata", off))
        put.enter_context(without_exchange(model))
        yield
