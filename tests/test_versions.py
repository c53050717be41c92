"""A newer version of another library is named, and nothing is refused for it."""

from __future__ import annotations

import warnings

import pytest
from models import wan

from freeloc_fx import Profile, compat, transform, versions


@pytest.mark.parametrize(
    ("found", "warned"),
    [("2.12.1", False), ("2.13.0+cpu", False), ("2.13.9", False), ("2.14.0.dev2027", True), ("3.0", True)],
)
def test_a_newer_version_is_named(found: str, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (versions, compat):
        monkeypatch.setattr(module, "version", lambda name: found if name == "torch" else "0.36.0")
    monkeypatch.setattr(versions, "NEWEST", {"torch": (2, 13), "diffusers": (0, 42)})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        transform(wan(), Profile(5, "vrpr"), backend="eager")
    said = [str(w.message) for w in seen if "was tested with" in str(w.message)]
    assert said == [said[0]] if warned else said == []
    if warned:
        assert said[0].startswith(f"torch {found} is newer than 2.13") and seen[-1].filename == __file__
