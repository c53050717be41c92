"""Calls of a model whose tokens are shared out over ranks: planned as one process would, captured by share.

A rank sees some tokens of a clip and cannot tell from them how long the clip is. So the first call with given shapes is
captured without the sharding, for its plan only; no tensor of all tokens is made on the way but what the model makes
itself before its first block. The blocks are then captured on this rank's tokens, adopt that plan, and exchange tokens
for heads around their attentions.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import nn

from freeloc_fx.compat import plain_call
from freeloc_fx.compiler.backend import Backend
from freeloc_fx.compiler.positions import KEPT, Position
from freeloc_fx.errors import CaptureError
from freeloc_fx.graph.capture import CallFacts
from freeloc_fx.graph.sharding import Adopted, by_path
from freeloc_fx.method.shards import diffusers_takes
from freeloc_fx.planning.plan import Plan
from freeloc_fx.planning.sharing import check_shared

from .blocks import BlockByBlock
from .parallel import TokenGroup, exchange_themselves, gathering, shared_at, without_exchange
from .rehearsal import plan_of_call

__all__ = ["SharedCalls", "arguments_among", "held_outside"]


@dataclass
class _Call:
    """What calls of one kind run through.

    Args:
        plan: of the unsharded model.
        by_block: captures this rank's share; None where nothing is rewritten and the model runs as it is.
    """

    plan: Plan
    by_block: BlockByBlock | None


class SharedCalls:
    """The calls of one model under context parallelism, by their shapes and the positions that they are given.

    Positions may come from what the model holds outside its blocks, too: tables in buffers, learned rates.

    Args:
        model: transformed; its own forward is in place when `run` is called.
        backend: of the model.
    """

    def __init__(self, model: nn.Module, backend: Backend) -> None:
        self.model, self.backend = model, backend
        self._known: dict[tuple[Hashable, Hashable], _Call] = {}
        self._positions: dict[Hashable, tuple[int, ...]] = {}
        """Which arguments, counted from 0, say where tokens stand, in calls of one kind."""

    def run(
        self,
        group: TokenGroup,
        known: CallFacts,
        given: Mapping[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call the model.

        Args:
            group: the ranks.
            known: what the call says about its latents.
            given: forward's arguments by name.
            args: the call's own.
            kwargs: the call's own.

        Returns:
            The model's result.

        Raises:
            FreelocError: as capture and planning raise it, on every rank and before anything is exchanged.
        """
        kind = (group, known, _signature(given))
        call = self._known.pop((kind, self._values(kind, given)), None)
        if call is None:
            call, self._positions[kind] = self._planned(group, known, given)
            self.backend.plans.append(call.plan)
        self._known[kind, self._values(kind, given)] = call
        for old in [one for one in self._known if one[0] == kind][:-KEPT]:  # used least lately, the same on every rank
            del self._known[old]
        if call.by_block is None:  # nothing is rewritten: what diffusers does, bitwise
            with gathering(group):
                return plain_call(self.model)(*args, **kwargs)
        with gathering(group), without_exchange(self.model):
            output, found = call.by_block.run(*args, **kwargs)
        if found is not None:
            self._check(found, call.plan)
        return output

    def _values(self, kind: Hashable, given: Mapping[str, Any]) -> tuple[Position, ...]:
        """The positions that a call is given. Every rank is given all of them, and tells them apart alike."""
        leaves = pytree.tree_leaves(dict(given))
        read = [leaves[place] for place in self._positions.get(kind, ())]
        return tuple(map(self.backend.positions.of, [*read, *held_outside(self.model, self.backend.layers)]))

    def _planned(self, group: TokenGroup, known: CallFacts, given: Mapping[str, Any]) -> tuple[_Call, tuple[int, ...]]:
        """What calls of one kind run through, and which arguments the plan's positions come from."""
        if self.backend.recorder is not None:
            raise CaptureError(
                f"{type(self.model).__name__}: attentions are observed on one process; expected a model without "
                f"context parallelism, found {group.shards.ranks} ranks"
            )
        planning = self.backend.for_planning()
        plan = plan_of_call(self.model, self.model, planning, known, given)
        ranks = group.shards.ranks
        by_diffusers = all(diffusers_takes(site.heads, ranks, group.anything) for site in plan.sites)
        if not plan.rewritten and by_diffusers and exchange_themselves(self.model, self.backend.layers):
            return _Call(plan, None), arguments_among(given, planning.read)
        check_shared(plan, ranks)
        at_blocks = shared_at(self.model, self.backend.layers)
        adopted = Adopted(by_path(planning.sites or ()), group.shards, group.name, at_blocks)
        own = self.backend.adopting(plan, adopted)
        call = _Call(plan, BlockByBlock(self.model, own, "tokens are shared out over ranks"))
        return call, arguments_among(given, planning.read)

    def _check(self, found: Plan, plan: Plan) -> None:
        """Refuse a call in which a planned attention was not met."""
        lost = sorted({site.path for site in plan.sites} - {site.path for site in found.sites})
        if lost:
            raise CaptureError(
                f"{lost[0]}: planned of the unsharded model, but this rank's blocks hold {len(found.sites)} of "
                f"{len(plan.sites)} planned attentions"
            )


def held_outside(model: nn.Module, blocks: Iterable[str]) -> list[torch.Tensor]:
    """What a model holds outside its blocks that positions may be made of.

    Blocks are given what was made of it, from which nobody can tell what that was. Weights of projections and norms are
    left out, and so are sharded ones, which no rank knows.

    Args:
        model: whose tokens are shared out.
        blocks: module paths of its transformer blocks.
    """
    inside = {module for path in blocks for module in model.get_submodule(path).modules()}
    found: list[torch.Tensor] = []
    for module in model.modules():
        if module not in inside:
            found += module.buffers(recurse=False)
            if not type(module).__module__.startswith("torch.nn."):
                found += module.parameters(recurse=False)
    return [one for one in found if type(one) in (torch.Tensor, nn.Parameter)]


def arguments_among(given: Mapping[str, Any], read: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """Which of a call's arguments are among the tensors that a capture of it has read.

    Args:
        given: forward's arguments by name.
        read: tensors, as the capture was given them.

    Returns:
        Their places among the leaves of the arguments.
    """
    known = {(value.data_ptr(), tuple(value.shape)) for value in read}
    leaves = enumerate(pytree.tree_leaves(dict(given)))
    return tuple(
        place
        for place, leaf in leaves
        if isinstance(leaf, torch.Tensor) and (leaf.data_ptr(), tuple(leaf.shape)) in known
    )


def _signature(value: Any) -> Hashable:
    """Equal for arguments of equal shapes and equal plain values."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, Mapping):
        return tuple((key, _signature(one)) for key, one in sorted(value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(_signature, value))
    return value if isinstance(value, (bool, int, float, str, type(None), torch.dtype)) else type(value).__qualname__
