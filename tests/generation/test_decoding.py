"""Decoding in chunks of latent frames: what diffusers' own decode makes, in fewer calls."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLWan
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.generation import decoding

SHAPE = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "attn_scales": []}


def wan(**options) -> AutoencoderKLWan:
    torch.manual_seed(0)
    vae = AutoencoderKLWan(**{**SHAPE, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, **options}).eval()
    for weight in vae.parameters():  # untrained, its frames hardly depend on one another
        torch.nn.init.normal_(weight, std=0.3)
    return vae


VAES = {
    "Wan 2.1": wan(temperal_downsample=[True, True]),
    "Wan 2.2": wan(
        temperal_downsample=[True, True], is_residual=True, patch_size=2, in_channels=12, out_channels=12,
        scale_factor_spatial=8, decoder_base_dim=8,
    ),
    "twice in time": wan(temperal_downsample=[False, True]),
}  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(VAES)), st.integers(1, 9), st.integers(1, 9), st.integers(1, 2), st.integers(0, 2**31 - 1)
)
@torch.no_grad()
def test_chunks_of_any_size_decode_to_what_the_vae_itself_makes(name, count, chunk, batch, seed) -> None:
    vae = VAES[name]
    latents = torch.randn(batch, 4, count, 3, 2, generator=torch.Generator().manual_seed(seed))
    expected = vae.decode(latents).sample
    made = decoding.decode(vae, latents, chunk)
    assert made.shape == expected.shape and made.dtype == expected.dtype
    torch.testing.assert_close(made, expected, rtol=0, atol=2e-5)
    if count > 1 and chunk == 1:
        assert torch.equal(made, expected)


@torch.no_grad()
def test_each_frame_depends_on_those_before_it_so_that_the_comparison_can_fail() -> None:
    vae = VAES["Wan 2.1"]
    latents = torch.randn(1, 4, 5, 3, 2)
    whole, tail = vae.decode(latents).sample, vae.decode(latents[:, :, 1:]).sample
    assert (whole[:, :, 5:] - tail[:, :, 1:]).abs().max() > 1e-2


@torch.no_grad()
def test_it_lasts_for_a_with_block_and_the_decoder_is_called_once_a_chunk() -> None:
    vae = wan(temperal_downsample=[True, True])
    calls: list[int] = []
    vae.decoder.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[2]))
    latents = torch.randn(1, 4, 8, 3, 2)
    expected = vae.decode(latents, return_dict=False)[0]
    assert calls == [1] * 8
    calls.clear()
    with decoding.in_chunks(vae, 512, 64) as chunk:
        assert chunk == 4  # at most
        made = vae.decode(latents).sample
        assert torch.equal(vae.decode(latents, return_dict=False)[0], made)
    assert calls == [1, 3, 4] * 2  # seven after the first, evenly
    torch.testing.assert_close(made, expected, rtol=0, atol=2e-5)
    calls.clear()
    with pytest.raises(KeyError), decoding.in_chunks(vae, 512, 64):
        raise KeyError
    assert "_decode" not in vars(vae)
    vae.decode(latents)
    assert calls == [1] * 8


@torch.no_grad()
def test_blocks_may_be_nested_and_somebody_elses_decode_comes_back() -> None:
    vae = wan(temperal_downsample=[True, True])
    latents = torch.randn(1, 4, 8, 3, 2)
    calls: list[int] = []
    vae.decoder.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[2]))
    with decoding.in_chunks(vae, 512, 64) as outer:
        with decoding.in_chunks(vae, 512, 128) as inner:
            assert (outer, inner) == (4, 2)
            vae.decode(latents)
            assert calls == [1, 1, 2, 2, 2]
        calls.clear()
        vae.decode(latents)
        assert calls == [1, 3, 4]
    assert "_decode" not in vars(vae)

    def mine(latents: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        return (latents,)

    vae._decode = mine
    with decoding.in_chunks(vae, 512, 64):
        assert vae._decode is not mine
    assert vars(vae)["_decode"] is mine


def test_large_pictures_take_a_latent_frame_a_call_as_they_do_in_diffusers() -> None:
    assert decoding.chunk_of(VAES["Wan 2.1"], 480, 832) == 1
    assert decoding.chunk_of(VAES["Wan 2.1"], 720, 1280) == 1
    assert decoding.chunk_of(VAES["Wan 2.1"], 64, 64) == 36


def test_tiles_and_other_vaes_stay_as_they_are() -> None:
    vae = wan(temperal_downsample=[True, True])
    vae.enable_tiling()
    other = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    for left in (vae, other, None):
        with decoding.in_chunks(left, 64, 64) as chunk:
            assert chunk is None and (left is None or "_decode" not in vars(left))
