"""Check the token grid that the RoPE implies against the model's input, and settle clips of one frame."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.fx as fx

from freeloc_fx.graph.capture import CallFacts, Capture
from freeloc_fx.graph.records import AttentionSite, sites, write
from freeloc_fx.method.grid import TokenGrid

__all__ = ["infer_token_grid"]


_SHARED = (
    ". This is one of {} processes, whose hooks may share out tokens that nobody exchanges: expected "
    "enable_parallelism(config=ContextParallelConfig(ulysses_degree=N)) for that, and the sizes of patches in the "
    "model's configuration"
)


Shapes = list[tuple[int, ...]]


def infer_token_grid(graph: fx.Graph, capture: Capture) -> int:
    """Every video site ends with a grid of its sequence's length; the model's input must agree with it.

    The frames of a grid come from RoPE alone. Where the model's configuration or patch embedding names its patches, a
    grid must account for the input's frames and area exactly; elsewhere a frame of the input is one of the grid. For an
    image, whose rows would look like frames, the input says so. Where a model also attends within another stream
    (sound), the largest grid is the video.

    Args:
        graph: its records change.
        capture: says what the model was called with.

    Returns:
        The number of sites whose grid agrees with the input.
    """
    shapes = [*capture.call.shapes] or [
        tuple(int(n) for n in value.shape)
        for value in capture.inputs.values()
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter) and value.ndim == 5
    ]
    checked = 0
    for node, site in sites(graph):
        if site.kind != "video" or site.grid is None:
            continue
        grid = site.grid
        if _is_image(grid, shapes, capture.call):
            write(node, grid=TokenGrid(1, 1, grid.video, grid.text_first, grid.text_last))
        elif reason := _contradiction(site, grid, shapes, capture.call):
            write(node, kind="other", reason=reason)
            continue
        elif capture.call.grid is not None and 1 in (grid.height, grid.width):
            # RoPE does not tell a row from a column where one is a single token.
            _, rows, columns = capture.call.grid
            write(node, grid=_shaped(grid, rows, columns))
        checked += 1
    return checked - _other_streams(graph) - _second_copies(graph)


def _shaped(grid: TokenGrid, rows: int, columns: int) -> TokenGrid:
    """A grid whose frames of the clip's size have those rows and columns."""
    same = (grid.height, grid.width)
    before, after = (
        tuple(replace(f, height=rows, width=columns) if (f.height, f.width) == same else f for f in some)
        for some in (grid.before, grid.after)
    )
    return replace(grid, height=rows, width=columns, before=before, after=after)


def _is_image(grid: TokenGrid, shapes: Shapes, call: CallFacts) -> bool:
    if call.grid is not None:
        frames, rows, columns = call.grid
        return frames == 1 and grid.video == rows * columns
    # One frame, rather than one channel: a frame of the input then holds at least one latent a token.
    if shapes:
        return all(1 in s[1:3] and s[3] * s[4] % grid.video == 0 for s in shapes)
    return call.size is not None and call.size[0] == 1


def _contradiction(site: AttentionSite, grid: TokenGrid, shapes: Shapes, call: CallFacts) -> str:
    """Why a grid cannot be the input's; empty where it can. Fewer frames than the input has are not a shorter clip: the
    tokens may be shared out over several processes, or belong to something else."""
    if grid.sequence != site.query_shape[2]:
        return f"RoPE covers {grid.sequence} of {site.query_shape[2]} tokens"
    if call.grid is not None:
        frames, rows, columns = call.grid
        # Frames beside the clip may be among the input's, as a reference that a model takes for leading frames is.
        if grid.tokens == rows * columns and frames in (grid.frames, grid.places):
            return ""
        return (
            f"RoPE implies {grid.frames} latent frames of {grid.tokens} tokens, the model's input has {frames} of "
            f"{rows} x {columns}" + (_SHARED.format(call.ranks) if call.ranks > 1 else "")
        )
    frames_of = [n for shape in shapes for n in shape[1:3]] + ([call.size[0]] if call.size else [])
    if frames_of and not {grid.frames, grid.places} & set(frames_of):
        found = (
            f"the inputs {shapes} hold" if shapes else f"the input of {call.size[0] if call.size else 0} frames holds"
        )
        return f"RoPE implies {grid.frames} latent frames, {found} no such axis"
    return ""


def _second_copies(graph: fx.Graph) -> int:
    """Demote sites whose unturned tokens are as many as the clip's, where others' are fewer: what stands there is no
    text but the clip once more, as an encoder has made it; returns how many."""
    found = [(node, site.grid) for node, site in sites(graph) if site.kind == "video" and site.grid is not None]
    fewest = min((grid.text for _, grid in found), default=0)
    copies = [(node, grid) for node, grid in found if grid.text == grid.clip > fewest]
    for node, grid in copies:
        write(
            node,
            kind="other",
            reason=f"{grid.text} tokens that are not turned stand beside the clip's {grid.clip}, where other layers "
            f"have {fewest}: the clip once more rather than text",
        )
    return len(copies)


def _other_streams(graph: fx.Graph) -> int:
    """Demote sites whose frames are not those of the largest grid; returns how many."""
    found = [(node, site.grid) for node, site in sites(graph) if site.kind == "video" and site.grid is not None]
    if not found:
        return 0
    largest = max((grid for _, grid in found), key=lambda grid: grid.clip)
    others = [(node, grid) for node, grid in found if (grid.frames, grid.tokens) != (largest.frames, largest.tokens)]
    for node, grid in others:
        write(
            node,
            kind="other",
            reason=f"{grid.frames} x {grid.tokens} tokens are not the video's {largest.frames} x {largest.tokens}",
        )
    return len(others)
