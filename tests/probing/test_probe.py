"""Probing: statistics against brute force, the journal under kills, the rule, both modes on a small random model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers_models
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import wan, wan_inputs
from slow import slow
from small_probe import generate, run, small

import freeloc_fx
from freeloc_fx.errors import ProfileError
from freeloc_fx.files import DamagedFileError, Journal
from freeloc_fx.method import solve
from freeloc_fx.method.grid import RopeLayout, TokenGrid
from freeloc_fx.method.sensitivity import Sensitivity
from freeloc_fx.planning.profile import Profile
from freeloc_fx.probing import ProbeSettings, for_length, measured_lengths
from freeloc_fx.probing.journal import Units
from freeloc_fx.probing.observe import Intervention, Recorder
from freeloc_fx.probing.plot import draw
from freeloc_fx.probing.result import Unit
from freeloc_fx.probing.rule import assign, split
from freeloc_fx.probing.run import _Run, watched_copy
from freeloc_fx.probing.statistics import TEMPERATURES, matching_temperature, observe_rows, sample_rows

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
        assert seen["ald"][r] == pytest.approx(np.mean(position), rel=1e-4)
        assert seen["context"][r] == pytest.approx(np.mean(context), rel=1e-4)
        assert seen["entropy"][r] == pytest.approx(np.mean(entropy), rel=1e-5)
    assert (np.diff(seen["entropies"].mean(0)) < 0).all()  # hotter scores, lower entropy


@pytest.mark.parametrize("projected", [False, True])
def test_the_change_of_the_output_is_that_of_whole_attentions(projected: bool) -> None:
    """Against keys that are turned and softmax over all rows, in float64."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 12, 8), torch.randn(2, 12, 8), torch.randn(2, 12, 5)
    weight = torch.randn(7, 10) if projected else None
    rows, settings = np.array([1, 6, 11]), ProbeSettings(3, (-4, 5), 1)
    seen = observe_rows(q, k, rows, LAYOUT, GRID, None, settings, values=v, projection=weight)["output"]

    def attend(shift: float) -> np.ndarray:
        moved = k.double().numpy().copy()
        for a, b, w in zip(LAYOUT.first, LAYOUT.second, LAYOUT.omega[0], strict=True):
            z = (moved[..., a] + 1j * moved[..., b]) * np.exp(1j * w * shift)
            moved[..., a], moved[..., b] = z.real, z.imag
        p = np.exp(q.double().numpy() @ moved.transpose(0, 2, 1) / math.sqrt(8))
        out = (p / p.sum(-1, keepdims=True)) @ v.double().numpy()
        joined = out.transpose(1, 0, 2).reshape(12, 10)
        return joined if weight is None else joined @ weight.double().numpy().T

    own = attend(0.0)
    changes = [np.linalg.norm(attend(s) - own, axis=1) / np.linalg.norm(own, axis=1) for s in settings.shifts]
    np.testing.assert_allclose(seen, np.mean(changes, 0)[rows], rtol=1e-4)


@pytest.mark.parametrize(("name", "found"), [("Wan", True), ("CogVideoX", True), ("HunyuanVideo", False)])
def test_outputs_are_projected_in_all_layers_or_in_none(name: str, found: bool) -> None:
    """In HunyuanVideo text and video part before the projection, so none is of the whole output."""
    model = diffusers_models.build(name)
    recorder = Recorder(f"projection {name}", ProbeSettings.for_length(3), 0, trained=3)
    weights: list[Any] = []
    recorder.see = lambda path, q, k, v, scale, projection: weights.append(projection)  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            watched_copy(model, recorder)(**diffusers_models.arguments(name, model, 5))
    finally:
        recorder.close()
    assert len(weights) >= 2
    assert all((weight is not None) == found for weight in weights)


@pytest.mark.parametrize(("first", "last"), [(0, 3), (2, 0), (1, 2)])
def test_text_beside_the_video_changes_nothing(first: int, last: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 12, 8) for _ in range(3))
    rows, settings = np.array([1, 6, 11]), ProbeSettings(3, (-4, 5), 1)
    alone = observe_rows(q, k, rows, LAYOUT, GRID, None, settings, values=v)
    assert "output" in alone
    q, k, v = (torch.cat([torch.randn(2, first, 8), x, torch.randn(2, last, 8)], 1) for x in (q, k, v))
    joint = observe_rows(q, k, rows, LAYOUT, TokenGrid(6, 1, 2, first, last), None, settings, values=v)
    for name, values in alone.items():
        np.testing.assert_allclose(joint[name], values, rtol=1e-5)


def test_entropies_are_taken_at_the_remapped_distances() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    table = solve.vrpr(3, 6).table(6)
    rows = np.array([0, 5, 10])
    seen = observe_rows(q, k, rows, LAYOUT, GRID, None, ProbeSettings(3, (4,), 1), table=table)
    for r, token in enumerate(rows):
        for t, factor in enumerate(TEMPERATURES):
            entropies = []
            for head in range(2):
                moved = k[head].double().numpy().copy()
                for key in range(12):
                    i, j = token // 2, key // 2
                    for a, b, w in zip(LAYOUT.first, LAYOUT.second, LAYOUT.omega[0], strict=True):
                        z = (moved[key, a] + 1j * moved[key, b]) * np.exp(1j * w * (i - j - table[i, j]))
                        moved[key, a], moved[key, b] = z.real, z.imag
                entropies.append(brute_entropy(factor * (moved @ q[head, token].double().numpy()) / math.sqrt(8)))
            assert seen["entropies"][r, t] == pytest.approx(np.mean(entropies), rel=1e-4, abs=1e-5)


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
    assert split(np.array([1.0, 1.01, 1.02, 1.3, 1.31])) is None  # two, too near to matter
    assert split(np.array([1.0, 1.01, 1.02, 1.6, 1.61])) is not None


def test_the_rule_gives_tsa_to_the_sensitive_layers() -> None:
    found = assign({0: Sensitivity(1, 0.1), 1: Sensitivity(1, 2.0), 2: Sensitivity(3, 0.12), 3: Sensitivity(1, 1.8)})
    assert found == {0: "vrpr", 1: "vrpr+tsa", 2: "vrpr", 3: "vrpr+tsa"}
    assert set(assign({i: Sensitivity(1, 1.0) for i in range(3)}).values()) == {"vrpr+tsa"}
    assert set(assign({i: Sensitivity(1, 1.0) for i in range(3)}, text=True).values()) == {"vrpr+tsa+squeeze"}


def test_a_temperature_goes_only_where_every_pair_is_kept() -> None:
    sensitivities = {0: Sensitivity(1, 0.1), 1: Sensitivity(1, 2.0), 2: Sensitivity(3, 0.12), 3: Sensitivity(1, 1.8)}
    found = assign(sensitivities, temperature=True)
    assert found == {0: "vrpr+temp", 1: "vrpr+tsa", 2: "vrpr+temp", 3: "vrpr+tsa"}


def test_the_journal_keeps_units_and_refuses_another_job(tmp_path: Path) -> None:
    calls = []
    job = {"a": 1}
    for _ in range(2):
        journal = Units(tmp_path, job)
        assert journal.get("one", lambda: calls.append(1) or {"x": 0.1 + 0.2}) == {"x": 0.1 + 0.2}
    assert len(calls) == 1
    with pytest.raises(ProfileError, match=r"another probe \(different: a\)"):
        Units(tmp_path, {"a": 2})


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    Journal(path).add({"x": 0.1 + 0.2})
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        lines = Journal(path)
        assert lines.rows == [{"x": 0.1 + 0.2}]
        lines.add({"y": 1})
        assert Journal(path).rows == [{"x": 0.1 + 0.2}, {"y": 1}]


def test_a_damaged_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    lines = Journal(path)
    lines.add({"x": 1})
    text = '{"x": 1}\n{"x": \n{"x": 3}\n'
    path.write_text(text)
    for read in (lambda: Journal(path), lines.refresh, lambda: lines.add({"x": 4})):
        with pytest.raises(DamagedFileError, match=r"scores\.jsonl, line 2: expected JSON, found"):
            read()
    assert path.read_text() == text
    Units(tmp_path / "units", {"a": 1})
    (tmp_path / "units" / "job.json").write_text('{"a":\n 1')
    with pytest.raises(DamagedFileError, match=r"job\.json, line 2: expected JSON, found"):
        Units(tmp_path / "units", {"a": 1})


@pytest.fixture(scope="module")
def model() -> Any:
    return small()


def test_being_watched_does_not_change_the_generation(model: Any) -> None:
    recorder = Recorder("test", ProbeSettings.for_length(3), 0)
    watched = watched_copy(model, recorder)
    torch.testing.assert_close(generate(watched, 7, 0), generate(model, 7, 0), atol=1e-6, rtol=1e-5)
    recorder.close()
    assert sorted(recorder.rows) == [0, 1, 2]
    assert all(len(calls) == 3 for calls in recorder.rows.values())


@pytest.mark.parametrize("mode", ["observe", "full"])
def test_a_probe_gives_a_profile_that_transforms(
    model: Any, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[int] = []
    expect = Recorder.expect
    monkeypatch.setattr(Recorder, "expect", lambda self, plan: captured.append(plan.grid.frames) or expect(self, plan))
    units: list[str] = []
    seeds = (0, 1) if mode == "observe" else (0,)
    profile = run(model, mode=mode, seeds=seeds, on_unit=lambda done, total, name: units.append(name))
    assert len(units) == (4 if mode == "observe" else 2 + 3 * 4 + 3)
    assert captured == [3, 7] * len(seeds), "what is done to a layer needs no capture of its own"
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


@pytest.mark.slow
def test_a_reward_decides_the_position_sensitivity_in_full_mode(model: Any) -> None:
    def reward(video: torch.Tensor, seed: int) -> float:
        base = generate(model, video.shape[2], seed)
        return 1.0 - float((video - base).norm() / base.norm())

    profile = run(model, mode="full", reward=reward)
    assert profile.sensitivities is not None
    assert all(s.position > 0 for s in profile.sensitivities.values())


@pytest.mark.parametrize("name", [slow("HunyuanVideo"), "CogVideoX"])
def test_a_joint_model_is_observed_and_left_as_it_is(name: str) -> None:
    case, joint = diffusers_models.CASES[name], diffusers_models.build(name)
    given = diffusers_models.arguments(name, joint, 5, text_shown=9 if name == "HunyuanVideo" else None)
    given["return_dict"] = False
    settings = ProbeSettings.for_length(3)
    with torch.no_grad():
        expected = joint(**given)[0]
        outputs = {}
        for what in (None, Intervention(0, window=4), Intervention(0, window=1), Intervention(0, shift=4)):
            recorder = Recorder(f"joint {what}", settings, 0, intervention=what, trained=3)
            try:
                outputs[what] = watched_copy(joint, recorder)(**given)[0]
            finally:
                recorder.close()
            grid = recorder.sites[case.sites[0]].grid
            assert (grid.text_first, grid.text_last, recorder.frames) == (*case.text, 5)
            assert sorted(recorder.rows) == [0, 1]
    torch.testing.assert_close(outputs[None], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs[Intervention(0, window=4)], expected, atol=1e-4, rtol=1e-3)  # sees every frame
    for what in (Intervention(0, window=1), Intervention(0, shift=4)):
        assert (outputs[what] - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.slow
def test_one_probe_answers_for_several_lengths(model: Any, tmp_path: Path) -> None:
    made: list[int] = []

    def counted(model: Any, frames: int, seed: int) -> torch.Tensor:
        made.append(frames)
        return generate(model, frames, seed)

    one = run(model, generate=counted, target_frames=None, lengths=(7, 5), temperature=True, journal=tmp_path / "j")
    assert made == [3, 7, 5]
    assert measured_lengths(one) == (7, 5)
    assert for_length(one, 7) == for_length(one, 9) == one
    other = for_length(one, 5)
    for frames in (4, 5, 6, 7, 40):  # 5.9 is as far from 5 as from 7
        taken = one.at(frames)
        expected = other if frames < 5.9 else one
        assert (taken.layers, taken.temperature) == (expected.layers, expected.temperature)
    planned = freeloc_fx.plan(model, one, frames=5, height=4, width=4)
    assert [site.strategy.name for site in planned.sites] == [other.strategy_name(layer) for layer in range(3)]
    alone = run(model, target_frames=5, temperature=True)
    assert other.layers == alone.layers
    assert other.sensitivities == alone.sensitivities
    assert other.temperature == alone.temperature
    assert other.sensitivities != one.sensitivities
    more = run(model, generate=counted, lengths=(5, 9), journal=tmp_path / "j")
    assert made == [3, 7, 5, 9]  # the journal had the rest
    assert measured_lengths(more) == (7, 5, 9)
    assert more.temperature is None  # not asked for
    one.save(tmp_path / "one.json")
    assert for_length(Profile.load(tmp_path / "one.json"), 5) == other
    draw(one, tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ProfileError, match=r"provenance.lengths: expected the measurements of a probe"):
        for_length(Profile(trained_frames=3), 7)
    with pytest.raises(ProfileError, match=r"sensitivities: expected some in profile 'by hand', found none"):
        draw(Profile(trained_frames=3), tmp_path / "none.png")


def test_frames_of_the_video_may_be_what_the_sampler_counts(model: Any) -> None:
    def sampler(model: Any, frames: int, seed: int) -> torch.Tensor:
        return generate(model, frames // 4, seed).repeat_interleave(4, 2)

    profile = freeloc_fx.probe(model, generate=sampler, trained_frames=12, target_frames=28, mode="observe", every=1)
    latent = run(model)
    assert profile.trained_frames == 3
    assert profile.sensitivities == latent.sensitivities


def test_a_journal_of_other_weights_is_refused(model: Any, tmp_path: Path) -> None:
    run(model, journal=tmp_path)
    weight = model.blocks[1].attn1.to_q.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.mul_(1.01)
        with pytest.raises(ProfileError, match=r"another probe \(different: weights\)"):
            run(model, journal=tmp_path)
    finally:
        with torch.no_grad():
            weight.copy_(before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trained_frames": 1}, "trained_frames: expected an integer of at least 2, found 1"),
        ({"seeds": ()}, "seeds: expected at least one"),
        ({"lengths": (2,)}, "target_frames: expected more than the 3 trained frames, found 2"),
        ({"target_frames": 3}, "target_frames: expected more than the 3 trained frames, found 3"),
        ({"mode": "guess"}, "mode: expected 'observe' or 'full', found 'guess'"),
        ({"generate": None}, "generate: a model without its pipeline"),
        ({"guidance": 3.0}, "guidance: expected None beside generate"),
    ],
)
def test_bad_requests_fail_before_any_generation(model: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        run(model, **changes)


def test_a_generation_of_two_sizes_shows_the_same_when_it_is_made_again() -> None:
    """A pipeline may call its model at a small size first; a recorder that was used before knows the last one."""
    model = wan()

    def generate_twice(watched: Any, frames: int, seed: int) -> Any:
        with torch.no_grad():
            watched(**wan_inputs(frames, 4, 6))
            return watched(**wan_inputs(frames, 6, 4))

    run_of = _Run(model, generate_twice, ProbeSettings.for_length(3), 1, None)
    first, second = (run_of.unit(Unit("observe", 0, 5), None)["layers"] for _ in range(2))
    assert first == second
