"""Frames of other VAEs, and of Wan's in tiles, one stretch after the other: bitwise what the VAE itself makes."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from slow import slow
from small_vaes import PATCHES, cogvideox, hunyuan, ltx, wan

from freeloc_fx.generation import running
from freeloc_fx.generation.decoding import eight_bit, in_chunks
from freeloc_fx.generation.stretches import stretch_of, why_at_once

VAES = {
    "CogVideoX": (cogvideox, 2),
    "CogVideoX in tiles": (lambda: cogvideox(tiles=True), 2),
    "HunyuanVideo": (hunyuan, 2),
    "LTX, framewise": (ltx, 2),
    "Wan in tiles": (wan, None),
    "Wan 2.2 in tiles": (lambda: wan(**PATCHES), None),
}


QUICK = ("CogVideoX", "CogVideoX in tiles", "HunyuanVideo", "Wan in tiles")


@pytest.mark.parametrize("frames", [slow(1), slow(2), 7])
@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in VAES])
@torch.no_grad()
def test_stretches_are_the_vae_s_own_frames(name: str, frames: int) -> None:
    make, stretch = VAES[name]
    vae = make()
    # Two rows of tiles and two columns, or three; of others, whatever is small.
    latents = torch.randn(1, 4, frames, *((4, 5) if "tiles" in name else (2, 3)))
    expected = vae.decode(latents).sample
    assert expected.std() > 0.02
    if "tiles" in name:
        assert expected.shape[-2:] == (32, 40), "eight pixels a latent: tiles overlap"
    given: list[np.ndarray] = []
    with in_chunks(vae, 10**4, 10**4, given.append) as chunk:  # a picture so large that each call takes a frame
        last = vae.decode(latents, return_dict=False)[0]
    assert chunk == (stretch or 1) and (stretch is None or stretch_of(vae) == stretch)
    assert np.array_equal(np.concatenate(given), eight_bit(expected[0]))
    assert torch.equal(last, expected[:, :, -1:])
    assert frames < 7 or max(map(len, given)) <= expected.shape[2] // 2, "in pieces"
    assert "_decode" not in vars(vae)
    assert torch.equal(vae.decode(latents).sample, expected), "the VAE is as it was"


@torch.no_grad()
def test_tiles_of_several_latent_frames_a_call() -> None:
    vae = wan()
    latents = torch.randn(1, 4, 6, 5, 4)
    expected = vae.decode(latents).sample
    given: list[np.ndarray] = []
    with in_chunks(vae, 100, 100, given.append) as chunk:
        vae.decode(latents)
    assert chunk == 15 and [len(part) for part in given] == [1, 20]
    off = np.abs(np.concatenate(given).astype(int) - eight_bit(expected[0]))
    assert off.max() <= 1, "up to rounding"


def test_whole_clips_say_why() -> None:
    whole = ltx(False)
    assert stretch_of(whole) is None and "use_framewise_decoding = True" in why_at_once(whole)
    assert "disable_tiling" in why_at_once(SimpleNamespace(use_tiling=True))
    assert "no exact stretches" in why_at_once(object())


class Whole:
    """A pipeline whose VAE makes all frames at once."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def __call__(self, num_frames: int, height: int, width: int, **_: Any) -> Any:
        class Result:
            frames = np.full((1, num_frames, height, width, 3), 0.25, np.float32)

        return Result


def test_one_line_says_that_all_frames_are_held(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    settings, given = {"frames": 33, "height": 4, "width": 6}, []
    with caplog.at_level(logging.WARNING, "freeloc_fx"):
        video, chunk, _ = running._run(Whole(ltx(False)), settings, None, given.append)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("all frames are held at once: AutoencoderKLLTXVideo decodes a whole clip at once")
    assert len(video) == 0 and chunk is None
    assert [len(part) for part in given] == [16, 16, 1] and int(given[0][0, 0, 0, 0]) == 64
