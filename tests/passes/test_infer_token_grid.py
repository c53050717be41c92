"""The token grid behind a sequence: frames from RoPE, checked against the model's input."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models import DiT, analysed, captured, latents, wan, wan_inputs
from slow import slow
from torch import nn

from freeloc_fx import plan as make_plan
from freeloc_fx.graph.records import sites, write
from freeloc_fx.method.grid import TokenGrid
from freeloc_fx.passes.find_attention import find_attention
from freeloc_fx.passes.find_key_mask import find_key_mask
from freeloc_fx.passes.infer_rope import infer_rope
from freeloc_fx.passes.infer_token_grid import infer_token_grid
from freeloc_fx.planning.profile import Profile


def grids(model: torch.nn.Module, arguments: dict[str, object]) -> set[tuple[int, int, int] | None]:
    return {
        (s.grid.frames, s.grid.height, s.grid.width) if s.grid else None
        for s in analysed(model, arguments)
        if s.kind != "cross"
    }


@pytest.mark.parametrize("frames", [2, slow(3), 16, slow(33)])
@pytest.mark.parametrize("side", [(1, 2), (2, 2), slow((3, 2)), (2, 5), (5, 3)])
def test_any_grid_of_wan(frames: int, side: tuple[int, int]) -> None:
    height, width = side
    found = grids(wan(num_layers=1), wan_inputs(frames, 2 * height, 2 * width))
    assert found == {(frames, height, width)}


@pytest.mark.parametrize("side", [(1, 1), (3, 1), (6, 1)])
def test_columns_of_one_token_keep_frames_and_raster_order(side: tuple[int, int]) -> None:
    """Which of height and width is 1 cannot be seen from RoPE, and makes no difference to any mask."""
    ((frames, height, width),) = grids(wan(num_layers=1), wan_inputs(7, 2 * side[0], 2 * side[1]))  # type: ignore[misc]
    assert frames == 7
    assert {height, width} == set(side)


@pytest.mark.parametrize("split", [(5, 2, 1), (3, 4, 1), (2, 3, 3)])
def test_any_grid_of_a_model_written_by_hand(split: tuple[int, int, int]) -> None:
    for size in ((4, 3, 5), (9, 2, 3)):
        torch._dynamo.reset()
        assert grids(DiT(split), {"hidden_states": latents(*size)}) == {size}


def test_a_patch_over_time() -> None:
    """Two latent frames a token: the grid counts what RoPE counts."""
    model = wan(num_layers=1, patch_size=(2, 2, 2))
    assert grids(model, wan_inputs(12, 4, 6)) == {(6, 2, 3)}


@pytest.mark.parametrize("shards", [2, 3])
@pytest.mark.parametrize("embedding", [None, nn.Conv3d(4, 8, (1, 1, 1), (1, 1, 1))])
def test_a_share_of_the_tokens_is_no_shorter_clip(shards: int, embedding: nn.Module | None) -> None:
    """A model that hands its blocks some of the frames, as processes that share a clip do, says nothing about patches
    in its configuration: frames of the grid that merely divide the input's are not its frames."""

    class Shared(DiT):
        def forward(self, hidden_states: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
            own = hidden_states.shape[2] // shards
            return super().forward(hidden_states[:, :, :own], context)

    model = Shared()
    if embedding is not None:
        model.embedding = embedding
    found = [site for site in analysed(model, {"hidden_states": latents(18, 3, 2)}) if site.kind != "cross"]
    assert found and {site.kind for site in found} == {"other"}
    assert all(f"RoPE implies {18 // shards} latent frames" in site.reason for site in found)


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (8, 2)])
def test_an_image_is_one_frame(size: tuple[int, int]) -> None:
    """Its rows turn steadily, as frames would; the input says that it is one frame, so nothing is to be rewritten."""
    plan = make_plan(wan(), Profile(trained_frames=2, layers="vrpr"), frames=1, height=size[0] * 2, width=size[1] * 2)
    assert plan.grid.frames == 1
    assert plan.rewritten == 0


def test_one_channel_is_not_one_frame() -> None:
    """(batch, 1, frames, ...) is a clip of one channel, not an image."""
    model = wan(num_layers=1, in_channels=1, out_channels=1)
    inputs = wan_inputs(9, 4, 6)
    inputs["hidden_states"] = latents(9, 4, 6, channels=1)
    assert grids(model, inputs) == {(9, 2, 3)}


def test_a_grid_that_the_input_contradicts_is_refused() -> None:
    graph, capture = captured(wan(num_layers=1), wan_inputs(6, 4, 4))
    for run in (find_attention, find_key_mask, infer_rope):
        run(graph, capture)
    (node,) = [n for n, s in sites(graph) if s.kind == "video"]
    write(node, grid=TokenGrid(8, 1, 3))
    assert infer_token_grid(graph, capture) == 0
    (site,) = [s for n, s in sites(graph) if n is node]
    assert site.kind == "other"
    assert "RoPE implies 8 latent frames" in site.reason


def test_rope_over_a_part_of_the_tokens_is_refused() -> None:
    graph, capture = captured(wan(num_layers=1), wan_inputs(6, 4, 4))
    for run in (find_attention, find_key_mask, infer_rope):
        run(graph, capture)
    (node, site) = next((n, s) for n, s in sites(graph) if s.kind == "video")
    assert site.grid is not None
    write(node, grid=replace(site.grid, frames=5))
    infer_token_grid(graph, capture)
    assert next(s for n, s in sites(graph) if n is node).reason == "RoPE covers 20 of 24 tokens"
