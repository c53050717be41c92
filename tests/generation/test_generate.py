"""The library below the command line: facts, requests, applying strategies, generating."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import freeloc_fx
from freeloc_fx import Profile, plans
from freeloc_fx.errors import LengthError, PlanError, ProfileError, StrategyError, TransformError
from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation import tiny_wan

PROMPT = "a red circle and a white square bounce slowly over a navy grid, the camera pans left"
BY_HAND = Profile(trained_frames=2, layers={0: "vrpr", 1: "vrpr+tsa"})
SMALL = {"frames": 13, "height": 32, "width": 32, "steps": 2, "guidance": 1.0}


def test_a_strategy_is_applied_replaced_and_taken_off(pipe) -> None:
    untouched = pipe.transformer
    assert library.apply(pipe, strategy="direct") is None
    assert pipe.transformer is untouched
    direct = library.generate(pipe, PROMPT, **SMALL)
    assert direct.plan is None
    assert direct.frames.shape == (13, 32, 32, 3) and direct.frames.dtype == np.float32
    assert direct.frames.min() >= 0 and direct.frames.max() <= 1
    assert direct.settings["seed"] == 0 and not direct.settings["vae_tiling"]

    assert library.apply(pipe, BY_HAND) == BY_HAND
    with pytest.raises(StrategyError, match="unknown strategy 'nope'"):
        library.apply(pipe, BY_HAND, "nope")
    mine = library.generate(pipe, PROMPT, **SMALL)
    assert mine.plan is not None
    assert [s.strategy.name for s in mine.plan.sites] == ["vrpr", "vrpr+tsa"]
    assert np.abs(mine.frames - direct.frames).max() > 0

    used = library.apply(pipe, BY_HAND, "tsa")
    assert used is not None and used.layers == "tsa"
    assert plans(pipe.transformer) == []
    library.apply(pipe, BY_HAND, "direct")
    assert pipe.transformer is untouched
    again = library.generate(pipe, PROMPT, **SMALL)
    assert np.array_equal(again.frames, direct.frames)
    with pytest.raises(TransformError):
        freeloc_fx.restore(pipe.transformer)


def test_steps_are_reported_and_what_the_callback_raises_ends_the_run(pipe) -> None:
    seen = []
    library.generate(pipe, PROMPT, **{**SMALL, "frames": 5}, on_step=lambda *step: seen.append(step))
    assert seen == [(1, 2), (2, 2)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.generate(pipe, PROMPT, **{**SMALL, "frames": 5}, on_step=stop)


def test_tiling_lasts_for_one_run_and_seeds_differ(pipe) -> None:
    tiled = []
    small = {**SMALL, "frames": 5}
    video = library.generate(
        pipe, PROMPT, **small, vae_tiling=True, on_step=lambda *_: tiled.append(pipe.vae.use_tiling)
    )
    assert tiled == [True, True] and not pipe.vae.use_tiling and video.settings["vae_tiling"]
    other = library.generate(pipe, PROMPT, **small, seed=1)
    assert not np.array_equal(video.frames, other.frames)


def test_a_video_that_is_not_finite_is_an_error(pipe) -> None:
    with torch.no_grad():
        pipe.transformer.proj_out.weight.fill_(float("nan"))
    with pytest.raises(freeloc_fx.FreelocError, match="NaN"):
        library.generate(pipe, PROMPT, **{**SMALL, "frames": 5})


def test_facts_from_files_equal_facts_of_the_pipeline(pipe, folder: Path) -> None:
    read, of = library.Facts.read(str(folder)), library.Facts.of(pipe)
    assert (read.temporal, read.spatial, read.multiple) == (of.temporal, of.spatial, of.multiple) == (4, 8, (16, 16))
    assert type(read.transformer).__name__ == type(of.transformer).__name__
    assert library.check_request(read, 13, 32, 48) == library.check_request(pipe, 13, 32, 48) == (4, 4, 6)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ((320, 32, 32), "4n[+]1 frames, the nearest are 317 and 321"),
        ((0, 32, 32), "the nearest are 1"),
        ((-3, 32, 32), "the nearest are 1"),
        ((13, 40, 32), "height=40: expected a multiple of 16 pixels, the nearest are 32 and 48"),
        ((13, 32, 8), "width=8: expected a multiple of 16 pixels, the nearest are 16"),
        ((257, 32, 32), "65 latent frames need 65 positions, the model's rope_max_seq_len is 64"),
        ((13, 16 * 65, 32), "rope_max_seq_len is 64"),
    ],
)
def test_sizes_that_the_model_cannot_make(folder: Path, request_: tuple[int, int, int], message: str) -> None:
    with pytest.raises(LengthError, match=message):
        library.check_request(library.Facts.read(str(folder)), *request_)


def test_a_profile_is_checked_without_weights(folder: Path) -> None:
    stand_in = library.Facts.read(str(folder)).transformer
    assert library.choose_profile(stand_in, BY_HAND) is BY_HAND
    with pytest.raises(ProfileError, match="Make one by hand"):
        library.choose_profile(stand_in)
    with pytest.raises(PlanError, match=r"model\.config"):
        library.choose_profile(stand_in, "wan2.1-t2v-1.3b")
    with pytest.raises(ProfileError, match=r"layers\.2: expected a layer of 0 to 1"):
        library.choose_profile(stand_in, Profile(trained_frames=2, layers={2: "vrpr"}))


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(library.ModelError, match="no such folder; expected tiny-wan, tiny-joint, a folder"):
        library.resolve_model(str(tmp_path / "none"))
    with pytest.raises(library.ModelError, match=r"no model_index\.json"):
        library.resolve_model(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(library.ModelError, match="is a file"):
        library.load_pipeline(tmp_path / "file")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(library.ModelError, match="configuration of its transformer"):
        library.Facts.read(str(tmp_path))
    monkeypatch.setattr("importlib.resources.files", lambda _: tmp_path)
    with pytest.raises(library.ModelError, match="is missing"):
        tiny_wan.path()


def test_defaults() -> None:
    assert library.defaults(model="tiny-wan") == library.Defaults(64, 64, 20, 3.0)
    assert library.defaults(model="owner/model") == library.Defaults(480, 832, 50, 5.0)


def test_defaults_of_a_pipeline_are_those_of_its_call(pipe) -> None:
    assert library.defaults(pipe) == library.Defaults(480, 832, 50, 5.0)
