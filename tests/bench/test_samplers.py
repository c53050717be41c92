"""The samplers that are compared: a step of each scheduler, what is asked for, and how rows become a table."""

from __future__ import annotations

import argparse
import math
from types import SimpleNamespace

import pytest
import torch
from samplers import SAMPLERS, Sampler, table, wanted
from short_clips import mean
from text_to_video import FRAMES

OWN = SimpleNamespace(config=SimpleNamespace(flow_shift=3.0))


def test_a_sampler_is_read_from_its_three_parts() -> None:
    assert Sampler.read("stochastic:24:2.5") == Sampler("stochastic", 24, 2.5)
    assert len({str(Sampler.read(text)) for text in SAMPLERS}) == len(SAMPLERS)  # the journal tells them apart by these
    with pytest.raises(argparse.ArgumentTypeError, match="expected one of own, euler, stochastic"):
        Sampler.read("ancestral:24:2")


def test_the_stochastic_one_noises_its_prediction_to_the_next_level() -> None:
    scheduler = Sampler("stochastic", 4, 2.0).of(OWN)
    scheduler.set_timesteps(4)
    levels = [3 * u / (1 + 2 * u) for u in (1, 2 / 3, 1 / 3)]  # flow shift 3; diffusers' last level is nearly 0
    torch.testing.assert_close(scheduler.sigmas[:3], torch.tensor(levels), rtol=0, atol=5e-3)
    sample, velocity = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 16, 3, 4, 4)
    torch.manual_seed(7)
    found = scheduler.step(velocity, scheduler.timesteps[0], sample, return_dict=False)[0]
    torch.manual_seed(7)
    now, then = scheduler.sigmas[:2]
    torch.testing.assert_close(found, (1 - then) * (sample - now * velocity) + then * torch.randn(sample.shape))


def test_euler_adds_no_noise_and_keeps_the_flow_shift() -> None:
    scheduler = Sampler("euler", 4, 2.0).of(OWN)
    assert scheduler.config.shift == OWN.config.flow_shift and not scheduler.config.stochastic_sampling
    assert Sampler("dpm-sde", 4, 2.0).of(OWN).config.flow_shift == OWN.config.flow_shift
    assert Sampler("own", 4, 2.0).of(OWN) is OWN


def test_a_profile_is_asked_for_beyond_the_trained_length_only() -> None:
    sampler = Sampler("own", 8, 3.0)
    args = SimpleNamespace(frames=[FRAMES, 321], prompts=["told"], samplers=[sampler], seed=5, clips=2)
    found = list(wanted(args))  # type: ignore[arg-type]
    assert {(frames, strategy) for frames, _, _, strategy, s in found if s is not None} == {
        (FRAMES, "direct"), (321, "direct"), (321, "profile"),
    }  # fmt: skip
    assert sum(s is None for *_, s in found) == 4  # the VAE alone, of each clip at each length
    assert len(found) == len({(*job[:4], str(job[4])) for job in found})


def test_the_table_has_a_row_of_means_for_each_way() -> None:
    names = ("twice", "missing", "pops", "constancy", "motion", "composite")
    rows = [
        {"kind": kind, "frames": 81, "sampler": "Euler", "strategy": "direct", "seed": seed,
         "scores": dict.fromkeys(names, value)}
        for kind in ("open", "told") for seed, value in enumerate((0.25, 0.75, None))
    ]  # fmt: skip
    found = table([r for r in rows if r["scores"]["composite"] is not None]).splitlines()
    assert [line.split(" | ")[0] for line in found[2:]] == ["| told", "| open"]
    assert "| 2 | 50% | 50% | 0.50 | 0.50 | 0.50 | 0.500 [" in found[2]
    unknown = table([{**r, "scores": {**r["scores"], "constancy": None}} for r in rows if r["seed"] < 2])
    assert "| 2 | 50% | 50% | 0.50 | nan | 0.50 | 0.500 [" in unknown  # measured in no clip: no figure


def test_a_mean_is_of_the_clips_in_which_it_was_measured() -> None:
    found = mean([{"a": 1.0, "b": math.nan}, {"a": math.nan, "b": math.nan}])
    assert found["a"] == 1.0 and math.isnan(found["b"])
