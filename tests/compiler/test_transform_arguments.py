"""Bad arguments of `transform` are found by `transform`, not by the first call of the model hours later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import small_probe

import freeloc_fx
from freeloc_fx import Profile
from freeloc_fx.errors import PlanError, ProfileError

PROFILE = Profile(trained_frames=3, layers="vrpr")


@pytest.fixture(scope="module")
def model() -> Any:
    return small_probe.small()


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("backend", None, "backend: expected a name, a callable or a mapping .* found None"),
        ("backend", 3, "found 3"),
        ("backend", {"backend": None}, "found None"),
        ("backend", ["inductor"], r"found \['inductor'\]"),
        ("backend", {"mode": "fast"}, "backend: .*fast"),
        ("backend", {"options": {"no_such_option": 1}}, "backend: .*no_such_option"),
        ("backend", {"options": {"max_autotune": "yes"}}, "backend: .*max_autotune"),
        ("backend", {"options": ["max_autotune"]}, "expected a mapping of options"),
        ("backend", {"passes": 1}, "expected the keys"),
        ("backend", "Inductor", "found 'Inductor'"),
        ("attention", None, "attention: expected 'auto'"),
        ("attention", "fast", "found 'fast'"),
        ("verify", "yes", "verify: expected True or False, found 'yes'"),
        ("verify", 2, "verify: expected True or False, found 2"),
        ("disable_passes", "merge_repeated_keys", "disable_passes: expected names"),
        ("disable_passes", None, "disable_passes: expected names"),
        ("disable_passes", ([],), r"disable_passes: .* found \[\[\]\]"),
        ("profile", 7, "profile: expected a Profile"),
        ("profile", Profile(trained_frames=3, layers={9: "vrpr"}), "layers.9"),
    ],
)
def test_a_bad_argument_is_refused_at_once(model: Any, argument: str, value: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        freeloc_fx.transform(model, **{"profile": PROFILE, argument: value})


@pytest.mark.parametrize(
    "backend",
    ["eager", "inductor", {}, {"mode": None, "options": None}, {"options": {}}, {"backend": "eager", "mode": "x"}],
)
def test_good_backends_are_taken(model: Any, backend: Any) -> None:
    freeloc_fx.transform(model, PROFILE, backend=backend, disable_passes=["merge_repeated_keys"])


@pytest.mark.parametrize("where", ["transform", "check_model", "plan", "load"])
def test_a_profile_of_another_model_is_a_profile_error(model: Any, where: str, tmp_path: Path) -> None:
    """Both names hold: it is the profile that is wrong, and it does not fit the model."""
    other = Profile.load("wan2.1-t2v-1.3b")
    other.save(tmp_path / "other.json")
    calls: dict[str, Any] = {
        "transform": lambda: freeloc_fx.transform(model, other),
        "check_model": lambda: other.check_model(model),
        "plan": lambda: freeloc_fx.plan(model, other, frames=7, height=4, width=4),
        "load": lambda: freeloc_fx.transform(model, str(tmp_path / "other.json")),
    }
    for expected in (ProfileError, PlanError):
        with pytest.raises(expected, match=r"profile 'wan2\.1-t2v-1\.3b' expects"):
            calls[where]()
