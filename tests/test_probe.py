"""Probing: statistics against brute force, the journal under kills, the rule, both modes on a small random model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from hypothesis import given
from hypothesis import strategies as st

import freeloc_fx
from freeloc_fx.errors import ProfileError
from freeloc_fx.meta import RopeLayout, TokenGrid
from freeloc_fx.probe import ProbeSettings
from freeloc_fx.probe.journal import Journal
from freeloc_fx.probe.rule import assign, split
from freeloc_fx.probe.statistics import TEMPERATURES, matching_temperature, observe_rows, sample_rows
from freeloc_fx.profile import Profile, Sensitivity

LAYOUT = RopeLayout(8, (0, 2), (1, 3), ((0.7, 0.05),))
GRID = TokenGrid(6, 1, 2)


def brute_entropy(scores: np.ndarray) -> float:
    p = np.exp(scores - scores.max())
    p /= p.sum()
    return float(-(p * np.log(np.maximum(p, 1e-300))).sum())


def test_observed_rows_are_the_papers_quantities() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    rows = np.array([1, 6, 11])
    settings = ProbeSettings(3, (-4, 5), 1)
    seen = observe_rows(q, k, rows, LAYOUT, GRID, None, settings)
    for r, token in enumerate(rows):
        position, context, entropy = [], [], []
        for head in range(2):
            logits = (k[head].double().numpy() @ q[head, token].double().numpy()) / math.sqrt(8)
            norms = []
            for shift in settings.shifts:
                moved = k[head].double().numpy().copy()
                for a, b, w in zip(LAYOUT.first, LAYOUT.second, LAYOUT.omega[0], strict=True):
                    z = (moved[:, a] + 1j * moved[:, b]) * np.exp(1j * w * shift)
                    moved[:, a], moved[:, b] = z.real, z.imag
                shifted = moved @ q[head, token].double().numpy() / math.sqrt(8)
                norms.append(np.linalg.norm(shifted - logits) / np.linalg.norm(logits))
            position.append(norms)
            near = np.abs(np.arange(12) // 2 - token // 2) <= 1
            whole, window = brute_entropy(logits), brute_entropy(logits[near])
            entropy.append(whole)
            context.append(abs(window - whole) / whole)
        assert seen["position"][r] == pytest.approx(np.mean(position), rel=1e-4)
        assert seen["context"][r] == pytest.approx(np.mean(context), rel=1e-4)
        assert seen["entropy"][r] == pytest.approx(np.mean(entropy), rel=1e-5)
    assert (np.diff(seen["entropies"].mean(0)) < 0).all()  # hotter scores, lower entropy


def test_matching_temperature_finds_the_factor() -> None:
    scores = np.random.default_rng(0).normal(size=200) * 2
    entropies = np.array([brute_entropy(scores * t) for t in TEMPERATURES])
    assert matching_temperature(entropies, brute_entropy(scores * 1.37)) == pytest.approx(1.37, rel=0.01)
    assert matching_temperature(entropies, 0.0) == pytest.approx(TEMPERATURES[-1])


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 64))
def test_sampled_rows_are_spread_over_the_clip(frames: int, tokens: int, count: int) -> None:
    rows = sample_rows(TokenGrid(frames, 1, tokens), count, (0,))
    assert len(rows) == min(count, frames * tokens)
    assert len(set(rows.tolist())) == len(rows)
    assert rows.min() >= 0
    assert rows.max() < frames * tokens


def test_split_cuts_two_groups_and_refuses_one() -> None:
    threshold = split(np.array([1.0, 1.1, 0.9, 5.0, 5.5]))
    assert threshold is not None
    assert 1.1 < threshold < 5.0
    assert split(np.ones(5)) is None
    assert split(np.exp(np.linspace(0, 1, 20))) is None  # an even spread is one group


def test_the_rule_gives_tsa_to_the_sensitive_layers() -> None:
    found = assign({0: Sensitivity(1, 0.1), 1: Sensitivity(1, 2.0), 2: Sensitivity(3, 0.12), 3: Sensitivity(1, 1.8)})
    assert found == {0: "vrpr", 1: "vrpr+tsa", 2: "vrpr", 3: "vrpr+tsa"}
    assert set(assign({i: Sensitivity(1, 1.0) for i in range(3)}).values()) == {"vrpr+tsa"}


def test_the_journal_keeps_units_and_refuses_another_job(tmp_path: Path) -> None:
    calls = []
    job = {"a": 1}
    for _ in range(2):
        journal = Journal(tmp_path, job)
        assert journal.get("one", lambda: calls.append(1) or {"x": 0.1 + 0.2}) == {"x": 0.1 + 0.2}
    assert len(calls) == 1
    with pytest.raises(ProfileError, match=r"another probe \(different: a\)"):
        Journal(tmp_path, {"a": 2})


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=3, cross_attn_norm=True, rope_max_seq_len=32,
    ).eval()  # fmt: skip


def generate(model: Any, frames: int, seed: int) -> torch.Tensor:
    x = torch.randn(1, 4, frames, 4, 4, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for step in range(3):
            x = x - 0.1 * model(x, torch.tensor([900 - 300 * step]), torch.ones(1, 5, 16)).sample
    return x


def run(model: Any, **changes: Any) -> Profile:
    arguments = {"generate": generate, "trained_frames": 3, "target_frames": 7, "every": 1, **changes}
    return freeloc_fx.probe(model, **arguments)


def test_observing_does_not_change_the_generation(model: Any) -> None:
    from freeloc_fx.probe.observe import Recorder
    from freeloc_fx.probe.run import observing

    recorder = Recorder("test", ProbeSettings.for_length(3), 0)
    with observing(model, recorder) as watched:
        torch.testing.assert_close(generate(watched, 7, 0), generate(model, 7, 0), atol=1e-6, rtol=1e-5)
    recorder.close()
    assert sorted(recorder.rows) == [0, 1, 2]
    assert all(len(calls) == 3 for calls in recorder.rows.values())


@pytest.mark.parametrize("mode", ["observe", "full"])
def test_a_probe_gives_a_profile_that_transforms(model: Any, mode: str, tmp_path: Path) -> None:
    profile = run(model, mode=mode, seeds=(0, 1) if mode == "observe" else (0,))
    assert profile.sensitivities is not None
    assert sorted(profile.sensitivities) == [0, 1, 2]
    for sensitivity in profile.sensitivities.values():
        assert sensitivity.position > 0
        assert sensitivity.context > 0
        assert (sensitivity.context_error is not None) == (mode == "observe")
    profile.save(tmp_path / "p.json")
    loaded = Profile.load(tmp_path / "p.json")
    assert loaded == profile
    plan = freeloc_fx.plan(model, loaded, frames=7, height=4, width=4)
    assert plan.rewritten == 3
    assert all(site.context_sensitivity is not None for site in plan.sites)


def test_a_reward_decides_the_position_sensitivity_in_full_mode(model: Any) -> None:
    def reward(video: torch.Tensor, seed: int) -> float:
        base = generate(model, video.shape[2], seed)
        return 1.0 - float((video - base).norm() / base.norm())

    profile = run(model, mode="full", reward=reward)
    assert profile.sensitivities is not None
    assert all(s.position > 0 for s in profile.sensitivities.values())


def test_killed_and_resumed_gives_the_identical_profile(model: Any, tmp_path: Path) -> None:
    expected = run(model, seeds=(0, 1))
    rng = np.random.default_rng(0)

    class Killed(BaseException):
        pass

    for attempt in range(5):
        folder = tmp_path / str(attempt)
        left = int(rng.integers(0, 8))
        units = 0

        def mortal(model: Any, frames: int, seed: int) -> torch.Tensor:
            nonlocal left, units
            units += 1
            if left == 0:
                left = -1
                raise Killed
            left -= 1
            return generate(model, frames, seed)

        try:
            run(model, seeds=(0, 1), generate=mortal, journal=folder)
        except Killed:
            before = units
            assert run(model, seeds=(0, 1), generate=mortal, journal=folder) == expected
            assert units - before == 4 - (before - 1)  # only what was missing
        else:
            assert run(model, seeds=(0, 1), generate=mortal, journal=folder) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_frames": 1}, "trained_frames: expected an integer of at least 2, found 1"),
        ({"target_frames": 3}, "target_frames: expected more than the 3 trained frames, found 3"),
        ({"mode": "guess"}, "mode: expected 'observe' or 'full', found 'guess'"),
        ({"generate": None}, "generate: a model without its pipeline"),
    ],
)
def test_bad_requests_fail_before_any_generation(model: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        run(model, **changes)
