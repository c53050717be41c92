"""Read off how RoPE turns q and k on each video self-attention, from the graph and by running a stretch of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
import torch
import torch.fx as fx

from freeloc_fx.errors import MatchFailure
from freeloc_fx.graph.calls import arguments
from freeloc_fx.graph.capture import Capture
from freeloc_fx.graph.execute import run_nodes, set_aside
from freeloc_fx.graph.flow import flow, reads_elsewhere
from freeloc_fx.graph.head_cut import AT_A_TIME, HeadCut, head_cuts
from freeloc_fx.graph.held import of_module
from freeloc_fx.graph.records import AttentionSite, note_values, sites, write
from freeloc_fx.graph.shapes import UNKNOWN, shape_of, size_of
from freeloc_fx.graph.slices import Slice, ancestors, linear_slice
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.rope import among, beside, dating, rates
from freeloc_fx.method.rope import measure as rope
from freeloc_fx.method.rope.temporal import alike, temporal

__all__ = ["infer_rope"]


Found = tuple[RopeLayout, TokenGrid, among.Order]


def infer_rope(graph: fx.Graph, capture: Capture) -> int:
    """Write `rope` and `grid` on sites where q and k are turned alike; demote the others to "other" with a reason.

    The stretch of graph from the norms or projections to the attention's q is linear in what they give. It is run in
    float32 on random inputs that are equal at every token, and what comes out is a rotation of channel pairs per token.
    Sites whose stretches do the same arithmetic on the same tables share one measurement. It holds for the values that
    the tables have, whether it found a rotation or none, so inputs that they are made of are noted.

    Args:
        graph: its records change.
        capture: its inputs are what position tables are computed from.

    Returns:
        The number of sites whose RoPE was read off.
    """
    video = [(node, site) for node, site in sites(graph) if site.kind == "video"]
    if not video:
        return 0
    view = flow(graph)
    known: dict[object, Found | MatchFailure] = {}
    tables = _Tables(view, capture)
    found = 0
    for node, site in video:
        given = arguments(node)
        results = []
        for name in ("query", "key"):
            operand = given[name]
            assert isinstance(operand, fx.Node)
            part = linear_slice(view, operand, node)
            signature = part.signature(view)
            if signature not in known:
                known[signature] = _measure(view, part, site, tables)
                note_values(tables.behind(part))
            results.append(known[signature])
        q, k = results
        if isinstance(q, MatchFailure) or isinstance(k, MatchFailure):
            failure = q if isinstance(q, MatchFailure) else k
            # As many text tokens as the clip has tokens look like a self-attention until here.
            cross = reads_elsewhere(graph, capture.inputs, given["query"], given["key"])
            write(node, kind="cross" if cross else "other", reason=str(failure))
        elif not alike(q[0], k[0]) or q[1:] != k[1:]:
            write(node, kind="other", reason="q and k are rotated differently")
        else:
            write(node, rope=q[0], grid=q[1], order=q[2])
            found += 1
            if q[2]:  # until `arrange_frames` has put its tokens in order
                write(node, kind="other", reason=_AMONG)
    return found


_AMONG = (
    "its frames stand among words or sound: expected them next to the clip, or an attention without a mask, without "
    "keys that are shared or further ones, without text whose length depends on data, as scaled_dot_product_attention"
)


class _PerSampleError(ValueError):
    """Samples of one batch have tables of their own."""


def _measure(view: nx.DiGraph, part: Slice, site: AttentionSite, tables: _Tables) -> Found | MatchFailure:
    """The rotation of a stretch, by the strictest tolerance within which it is one; why it is none, by the loosest."""
    strictest, *looser = tables.tolerances(part)
    found = _measure_within(strictest, view, part, site, tables)
    for tolerance in looser:
        if isinstance(found, MatchFailure):
            found = _measure_within(tolerance, view, part, site, tables)
    return found


def _measure_within(
    tolerance: float, view: nx.DiGraph, part: Slice, site: AttentionSite, tables: _Tables
) -> Found | MatchFailure:
    name = part.end.name
    _, heads, tokens, dim = site.query_shape
    if not part.nodes:
        return MatchFailure("nothing but a norm or a projection stands before the attention: no RoPE", name)
    # Where several heads share one of the keys, what goes into them is the same.
    shared = [n for n in range(heads, 0, -1) if heads % n == 0]
    layouts = []
    for start in part.starts:
        layout = _channels(start, [n * dim for n in shared])
        if isinstance(layout, MatchFailure):
            return MatchFailure(layout.reason, name)
        layouts.append(layout)
    groups = min(size_of(layout) for layout in layouts) // dim
    try:
        outside = tables.outside(part)
    except LookupError as error:
        return MatchFailure(f"a position table needs {error}, which the capture does not hold", name)
    inputs = rope.probes(groups * dim).unflatten(1, (groups, dim)).repeat_interleave(heads // groups, 1)
    device = next((t.device for t in outside.values() if isinstance(t, torch.Tensor)), torch.device("cpu"))
    written = part.written

    def run(probe: torch.Tensor, given: Mapping[fx.Node, Any], cut: HeadCut | None = None) -> torch.Tensor:
        sized = tuple if cut is None else cut.shape
        if cut is not None:
            given = {n: cut.part(t) for n, t in given.items()}
            probe = probe[cut.first : cut.first + AT_A_TIME]
        values = {n: t.clone() if n in written and isinstance(t, torch.Tensor) else t for n, t in given.items()}
        nothing = torch.zeros((), dtype=torch.float32, device=device)  # float32, as all casts
        values |= {n: nothing.expand(sized(shape_of(n) or ())) for n in part.lent}
        for start, layout in zip(part.starts, layouts, strict=True):
            shape = shape_of(start)
            assert shape is not None
            own = probe[:: heads * dim // size_of(layout)]  # one of those that share what goes in
            values[start] = own.reshape(sized(layout)).expand(sized(shape)).contiguous().to(device)
        smaller = None if cut is None else cut.sizes
        result = run_nodes(part.nodes, values, widen=True, replace=smaller, keep=(part.end,))[part.end]
        expected = (result.shape[0], len(probe), tokens, dim)
        if tuple(result.shape) != expected and not (site.padded and result.shape[2] < tokens):
            raise ValueError(f"expected {expected}, found {tuple(result.shape)}")
        if result.shape[0] > 1 and not torch.allclose(result, result[:1].expand_as(result), rtol=0, atol=1e-5):
            raise _PerSampleError(
                "the samples of the batch are turned differently, as by two frame rates; expected one rotation for all "
                "of them: call the model once for each"
            )
        # What data-dependent indexing may leave out is text, which is not turned.
        padding = probe[:, None].to(result).expand(-1, tokens - result.shape[2], dim)
        found = torch.cat([result[0], padding], 1).float().cpu()
        # Nor is what is learned, whatever goes in.
        learned = (slice(site.sinks[0]), slice(tokens - site.sinks[1], tokens))
        for places in learned:
            found[:, places] = probe[:, None].cpu()
        return found

    def measure(given: Mapping[fx.Node, Any]) -> rope.Rotations | MatchFailure:
        cuts = None
        if groups == heads:
            cuts = head_cuts(heads, tokens, dim, list(given.values()), site.query_shape[0])
        with torch.no_grad():
            if cuts is not None:
                few = _measured_by_heads(lambda i, cut: run(inputs[i], given, cut), cuts, inputs, tolerance)
                if few is not None:
                    return few
            return rope.measure_heads(inputs, lambda i: (run(inputs[i], given),), tolerance)

    found: tuple[RopeLayout, TokenGrid] | MatchFailure
    stretch: beside.Stretch | None = None
    order: among.Order = ()
    together: tuple[int, int] | None = None
    try:
        rotations = measure(outside)
        if not isinstance(rotations, MatchFailure) and any(site.beside):
            rotations = rope.without(rotations, site.beside)
        if isinstance(rotations, MatchFailure):
            return MatchFailure(rotations.reason, name)
        found = temporal(rotations, dim, tolerance)
        if isinstance(found, MatchFailure) or dating.more_than_a_clip(rotations, *found, tolerance, tables.clip):
            parted = beside.stretch_of(rotations, dim, tolerance, tables.clip)
            if isinstance(parted, MatchFailure):
                ordered = among.order_of(rotations, tolerance, tables.clip)
                if ordered is not None:
                    moved = among.in_order(rotations, ordered[0])
                    again = beside.stretch_of(moved, dim, tolerance, tables.clip, ordered[1])
                    if not isinstance(again, MatchFailure):
                        parted, rotations, (order, together) = again, moved, ordered
            if not isinstance(parted, MatchFailure):
                stretch = parted[1]
                found = parted[0], stretch.grid
            elif not isinstance(found, MatchFailure) or parted is not beside.NO_CLIP:
                found = parted
    except _PerSampleError as error:
        return MatchFailure(str(error), name)
    except Exception as error:  # any operation of the user's model may fail on a probe; the site is then not usable
        return MatchFailure(f"running {part.start.name} -> {name} on a probe failed: {error}", name)
    if isinstance(found, MatchFailure):
        return MatchFailure(found.reason, name)
    measured, grid = found

    def in_order(given: Mapping[fx.Node, Any]) -> rope.Rotations | MatchFailure:
        found = measure(given)
        return found if isinstance(found, MatchFailure) or not order else among.in_order(found, order)

    words = (0, 0) if stretch is None else (stretch.text_first, stretch.text_last)
    measured = _true_rates(view, part, tables, measured, grid, order, words, rotations, in_order)
    if stretch is None:
        return measured, grid, order
    dated = dating.dated(rotations, measured, stretch, tolerance, tables.clip, together)
    return MatchFailure(dated.reason, name) if isinstance(dated, MatchFailure) else (*dated, order)


def _true_rates(
    view: nx.DiGraph,
    part: Slice,
    tables: _Tables,
    measured: RopeLayout,
    grid: TokenGrid,
    order: among.Order,
    words: tuple[int, int],
    rotations: rope.Rotations,
    measure: Callable[[Mapping[fx.Node, Any]], rope.Rotations | MatchFailure],
) -> RopeLayout:
    """The layout with rates beyond whole turns, where what counts frames can be moved by a part of a frame."""
    if rates.conventional(measured):
        return measured
    for node, steps in _time_axes(view, part, grid, order, tables):

        def moved(shift: float, node: fx.Node = node, steps: Any = steps) -> rope.Rotations | MatchFailure:
            return measure(tables.moved(part, node, shift * steps))

        try:
            counted = rates.count_turns(measured, grid, rotations, moved)
        except Exception as error:  # positions that are indices take no fraction; another axis, or none, may
            set_aside(error, f"{node.name} does not move by a part of a frame")
            continue
        if counted is not None:
            return counted
    by_words = rates.count_by_words(measured, words, rotations, measured.residual)
    return replace(measured, whole_turns=False) if by_words is None else by_words


def _measured_by_heads(
    run: Callable[[int, HeadCut], torch.Tensor], cuts: Sequence[HeadCut], inputs: torch.Tensor, tolerance: float
) -> rope.Rotations | None:
    """What a stretch does, run for a few heads at a time; None where that finds no rotation, or cannot be."""
    try:
        found = rope.measure_heads(
            inputs, lambda index: (run(index, cut)[AT_A_TIME - cut.new :] for cut in cuts), tolerance
        )
    except _PerSampleError:
        raise
    except Exception as error:  # a size in the stretch that is not what it seems; all heads at once will tell
        set_aside(error, "not measured a few heads at a time")
        return None
    return None if isinstance(found, MatchFailure) else found


def _time_axes(
    view: nx.DiGraph, part: Slice, grid: TokenGrid, order: among.Order, tables: _Tables
) -> list[tuple[fx.Node, torch.Tensor]]:
    """Nodes behind the position tables that say when frames are, each with what one latent frame adds to it: one number
    a frame, evenly spaced, or coordinates of every token."""

    def fits(shape: tuple[int, ...] | None) -> bool:
        return shape == (grid.frames,) or (shape is not None and 1 < len(shape) < 6 and grid.sequence in shape)

    nodes = [n for n in ancestors(view, part.outside) if fits(shape_of(n))]
    values = tables.values(nodes) if nodes else {}
    clip = slice(grid.text_first, grid.text_first + grid.clip)
    found = []
    for node in nodes:
        value = values[node]
        if not isinstance(value, torch.Tensor):
            continue
        if value.shape == (grid.frames,):
            steps = value[1:2] - value[:1] if rates.evenly_spaced(value) else None
        else:
            axis = list(value.shape).index(grid.sequence)
            if order:
                value = value.index_select(axis, torch.from_numpy(among.places_of(order)).to(value.device))
            steps = rates.steps_of_time(value, clip, grid.frames, axis)
        if steps is not None:
            found.append((node, steps))
    return found


def _channels(start: fx.Node, counts: Sequence[int]) -> list[int] | MatchFailure:
    """The shape in which the channels lie at a source, with 1 for its batch and its tokens.

    Args:
        start: the source.
        counts: how many channels there may be, the likeliest first: those of all heads.
    """
    shape = shape_of(start)
    if shape is None or UNKNOWN in shape or len(shape) < 3:
        return MatchFailure(f"expected a tensor of batch, tokens and channels at {start.name}, found {shape}")
    if len(shape) == 3 and size_of(shape[1:]) in counts:
        return [1, *shape[1:]]  # tokens, heads and channels of one sample
    for axis in range(1, len(shape)):
        layout = [1, *(size if place != axis else 1 for place, size in enumerate(shape) if place)]
        if size_of(layout) in counts:
            return layout
    return MatchFailure(f"{start.name} {shape} does not hold the attention's {counts[0]} channels beside its tokens")


def _picks(table: torch.Tensor) -> bool:
    """Whether a value says which tokens there are rather than how they are turned."""
    return not (table.is_floating_point() or table.is_complex())


def _rounded(table: torch.Tensor) -> bool:
    """Whether a float table holds what half precision can, as after `model.bfloat16().float()`, and not just integers
    and the like."""
    if not table.is_floating_point() or bool((8 * table == (8 * table).round()).all()):
        return False
    return any(torch.equal(table, table.to(dtype).to(table.dtype)) for dtype in _HALF)


_HALF = (torch.float16, torch.bfloat16)


class _Tables:
    """Values of nodes that no activation reaches: position tables, computed from the capture's real inputs.

    Sites share them, so each stretch's are computed once. `clip`: its frames and the tokens of each, where
    the call says.
    """

    def __init__(self, view: nx.DiGraph, capture: Capture) -> None:
        self.view, self.inputs = view, capture.inputs
        grid = capture.call.grid
        self.clip = None if grid is None else (grid[0], grid[1] * grid[2])
        self._known: dict[object, dict[fx.Node, Any]] = {}

    def outside(self, part: Slice) -> dict[fx.Node, Any]:
        """Values of everything that a stretch reads from outside.

        Raises:
            LookupError: they need something that the capture does not hold.
        """
        if part.outside not in self._known:
            self._known[part.outside] = self.values(part.outside)
        return self._known[part.outside]

    def tolerances(self, part: Slice) -> list[float]:
        """By how much what its tables do may differ from a rotation, as a complex modulus, the strictest first."""
        try:
            tables = [t for t in self.outside(part).values() if isinstance(t, torch.Tensor)]
        except LookupError:  # whoever measures will say so
            tables = []
        if any(t.dtype in _HALF for t in tables):
            return [3e-2]
        return [1e-4, 3e-2] if any(map(_rounded, tables)) else [1e-4]

    def behind(self, part: Slice) -> list[fx.Node]:
        """Inputs of the graph that a stretch's tables are made of, learned ones among them; not arguments of the call
        that pick valid tokens. None of a stretch that nobody has asked `outside` for, or in vain."""
        read: dict[fx.Node, None] = {}
        for table, value in self._known.get(part.outside, {}).items():
            if not isinstance(value, torch.Tensor):
                continue
            found = [n for n in ancestors(self.view, [table]) if isinstance(self.inputs.get(n), torch.Tensor)]
            if not _picks(value) or all(of_module(n, self.inputs[n]) for n in found):
                read |= dict.fromkeys(found)
        return list(read)

    def moved(self, part: Slice, node: fx.Node, by: torch.Tensor) -> dict[fx.Node, Any]:
        """`outside` as if `by` had been added to what `node` gives."""
        places = self.values([node])[node]
        places = places.to(torch.promote_types(places.dtype, torch.float32))
        return self.values(part.outside, {node: places + by})

    def values(self, wanted: Sequence[fx.Node], given: Mapping[fx.Node, Any] | None = None) -> dict[fx.Node, Any]:
        """Values of nodes; `given` stands for what it names."""
        nodes = ancestors(self.view, wanted)
        missing = [n.name for n in nodes if n.op in ("placeholder", "get_attr") and n not in self.inputs]
        if missing:
            raise LookupError(", ".join(missing))
        known = {n: self.inputs[n] for n in nodes if n in self.inputs} | dict(given or {})
        with torch.no_grad():
            found = run_nodes(nodes, known)
        return {n: found[n] for n in wanted}
