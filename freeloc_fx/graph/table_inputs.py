"""Inputs that a rewrite adds to a graph: tables that a long attention reads beside q, k and v.

A graph is compiled for the shapes of its inputs. As inputs, tables serve every layer and denoising step, and other
tables of the same shapes find what is compiled; as constants, each would be code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.fx as fx

from freeloc_fx.attention.flex.site import Site
from freeloc_fx.attention.flex.tables import site_tables
from freeloc_fx.attention.running import running
from freeloc_fx.compat import give_source
from freeloc_fx.errors import CaptureError, TimelineError
from freeloc_fx.method.strategy import Strategy
from freeloc_fx.method.timeline import TextSchedule, pair_channels

__all__ = ["PairInput", "ScheduleInput", "TableInput", "TableInputs", "table_of", "with_tables"]

KEY = "freeloc_table"


@dataclass(frozen=True)
class TableInput:
    """What one added input is.

    Args:
        spec: key of the attention's spec.
        form: of its site.
        name: of the table, see `site_tables`.
        heads: which heads of it, (first, end); None for the whole table.
        site: what the table is made of.
    """

    spec: str
    form: Any
    name: str
    heads: tuple[int, int] | None
    site: Site = field(compare=False, repr=False)

    def value(self, step: int, device: torch.device) -> torch.Tensor:
        """The table at one denoising step, on a device."""
        whole = site_tables(self.site, step, device)[self.name]
        return whole if self.heads is None else whole[:, slice(*self.heads)]


@dataclass(frozen=True)
class ScheduleInput:
    """An added input that says what each frame sees of the texts over time of the call that is running.

    Args:
        name: "weights", float64 (frames, texts), or "starts", int64 (texts + 1,), both on the CPU: see `TextSchedule`.
        frames: frames of tokens.
    """

    name: Literal["weights", "starts"]
    frames: int

    def value(self, step: int, device: torch.device) -> torch.Tensor:
        """The table of the call that is running, whatever the step and the device."""
        texts = _running_texts()
        if self.name == "starts":
            return torch.tensor(texts.starts, device="cpu")
        return torch.from_numpy(texts.over(self.frames)).clone()


@dataclass(frozen=True)
class PairInput:
    """An added input that says which pairs of video and text tokens see each other in the call that is running.

    Args:
        which: "queries" or "keys", (batch or 1, 1, tokens, channels): see `pair_channels`.
        frames: frames of tokens.
        tokens: of one frame.
        text_first: the text lies before the video.
        scale: what the attention multiplies products of q and k by, without a strategy's temperature.
        channels: how many.
        dtype: of the attention's q or k.
        row: of the batch, in a model that runs row by row; None for all rows.
        strategy: of the attention, whose temperature multiplies biases, too.
    """

    which: Literal["queries", "keys"]
    frames: int
    tokens: int
    text_first: bool
    scale: float
    channels: int
    dtype: torch.dtype
    row: int | None
    strategy: Strategy

    def value(self, step: int, device: torch.device) -> torch.Tensor:
        """The channels of the call that is running, at one denoising step, on a device.

        Raises:
            TimelineError: strategies that are mixed have temperatures each of its own, so that no bias fits all.
        """
        texts = _running_texts()
        known = {member.temperature for member in self.strategy.at(step).members}
        if len(known) > 1:
            raise TimelineError(
                f"timeline: strategy {self.strategy.name!r} mixes strategies of temperatures {sorted(known)}, so that "
                "shares of texts would differ between them; expected one temperature"
            )
        scale = self.scale * known.pop()
        starts = [texts.starts] if not texts.rows else list(texts.rows)
        if self.row is not None and texts.rows:
            starts = [texts.rows[self.row]]
        table = texts.over(self.frames)
        made = [pair_channels(table, one, self.tokens, self.text_first, scale, self.channels) for one in starts]
        chosen = np.stack([pair[0 if self.which == "queries" else 1] for pair in made])
        return torch.from_numpy(chosen)[:, None].to(device, self.dtype)


AnyInput: TypeAlias = TableInput | ScheduleInput | PairInput


def _running_texts() -> TextSchedule:
    texts = running().texts
    if texts is None:
        raise CaptureError("texts over time: expected a call with a timeline, found one without")
    return texts


def table_of(node: fx.Node) -> AnyInput | None:
    """What an added input is; None for every other node."""
    found = node.meta.get(KEY)
    assert found is None or isinstance(found, (TableInput, ScheduleInput, PairInput))
    return found


class TableInputs:
    """The added inputs of one graph; equal ones are one placeholder.

    Args:
        graph: gets the placeholders, after its own.
        device: where the tables lie.
    """

    def __init__(self, graph: fx.Graph, device: torch.device) -> None:
        self.graph, self.device = graph, device
        self._known = {table: node for node in graph.nodes if (table := table_of(node)) is not None}
        self._keys: dict[int, tuple[Site, str]] = {}
        self._last = next((n for n in reversed(graph.nodes) if n.op == "placeholder"), None)

    def __call__(self, site: Site, name: str, heads: tuple[int, int] | None = None) -> fx.Node:
        """The placeholder of a table.

        Args:
            site: what the table is made of.
            name: of the table, see `site_tables`.
            heads: which heads of it; None for the whole table.
        """
        if id(site) not in self._keys:  # a key is a hash of everything
            self._keys[id(site)] = (site, site.spec.key)
        label = f"{site.spec.strategy.name}_{name}".replace(".", "_").replace("+", "_").replace(" ", "_")
        return self._placeholder(TableInput(self._keys[id(site)][1], site.form, name, heads, site), label)

    def schedule(self, name: Literal["weights", "starts"], frames: int) -> fx.Node:
        """The placeholder of a table of texts over time.

        Args:
            name: see `ScheduleInput`.
            frames: frames of tokens.
        """
        return self._placeholder(ScheduleInput(name, frames), f"text_{name}")

    def pairs(self, table: PairInput) -> fx.Node:
        """The placeholder of channels that say which pairs see each other.

        Args:
            table: what it is.
        """
        return self._placeholder(table, f"text_{table.which}_{len(self._known)}")  # more than one a graph

    def _placeholder(self, table: AnyInput, label: str) -> fx.Node:
        node = self._known.get(table)
        if node is None:
            first = next(iter(self.graph.nodes))
            with self.graph.inserting_before(first) if self._last is None else self.graph.inserting_after(self._last):
                node = self.graph.placeholder(self._free(label))
            node.meta[KEY] = table
            give_source(node, table.value(0, self.device))
            self._known[table] = self._last = node
        return node

    def _free(self, label: str) -> str:
        """A label that no input has: fx tells nodes' names apart, and writes targets into the signature."""
        taken = {node.target for node in self.graph.nodes if node.op == "placeholder"}
        return label if label not in taken else f"{label}_{len(self._known)}"


def with_tables(
    graph: fx.Graph, device: torch.device, follows_steps: bool
) -> tuple[list[torch.Tensor], Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """Call a rewritten graph like the one that it was made from.

    Args:
        graph: with its added inputs.
        device: where the tables lie.
        follows_steps: whether a table depends on the denoising step.

    Returns:
        The values of the added inputs at the step that is running, and what makes of a callable of all inputs one of
        the graph's own inputs.
    """
    tables = [table for node in graph.nodes if (table := table_of(node)) is not None]

    def values() -> list[torch.Tensor]:
        step = running().step
        return [table.value(step, device) for table in tables]

    fixed: Sequence[torch.Tensor] = values()
    varies = follows_steps or any(not isinstance(table, TableInput) for table in tables)

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        if not tables:
            return call

        def with_them(*inputs: Any) -> Any:
            return call(*inputs, *(values() if varies else fixed))

        return with_them

    return list(fixed), wrap
