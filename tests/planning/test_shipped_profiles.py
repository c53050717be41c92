"""Each shipped profile against diffusers: its fingerprint is made of the class's own settings and finds it and no
other; its trained length follows from the frames that it names."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from freeloc_fx import Profile
from freeloc_fx.errors import ProfileError
from freeloc_fx.planning.fingerprint import by_weights

SHIPPED = {name: Profile.load(name) for name in Profile.names()}


def class_and_config(profile: Profile) -> tuple[str, dict[str, Any]]:
    model: Any = profile.model
    return str(model["class"]), dict(model["config"])


def stand_in(profile: Profile) -> Any:
    """A module of the profile's class name, with the class's default configuration and the fingerprint in it."""
    name, config = class_and_config(profile)
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default is not inspect.Parameter.empty}
    module: Any = type(name, (nn.Module,), {})()
    module.config = defaults | config
    return module


def in_diffusers(name: str) -> Any:
    """The parameter of a test that wants the profile's class, which an older diffusers may lack."""
    cls, _ = class_and_config(SHIPPED[name])
    without = pytest.mark.skipif(not hasattr(diffusers, cls), reason=f"this diffusers has no {cls}")
    return pytest.param(name, marks=without)


@pytest.mark.parametrize("name", map(in_diffusers, SHIPPED))
def test_the_fingerprint_is_of_settings_that_the_class_has(name: str) -> None:
    cls, config = class_and_config(SHIPPED[name])
    assert config, "a class name alone tells no checkpoints apart"
    assert config.keys() <= inspect.signature(getattr(diffusers, cls).__init__).parameters.keys()


@pytest.mark.parametrize("name", map(in_diffusers, SHIPPED))
def test_a_model_of_the_profile_finds_it(name: str) -> None:
    assert Profile.for_model(stand_in(SHIPPED[name])).name == name


@pytest.mark.parametrize("name", SHIPPED)
def test_no_other_profile_takes_it(name: str) -> None:
    """Profiles of one class differ in a setting that both name, or one says more than the other."""
    cls, config = class_and_config(SHIPPED[name])
    for other, profile in SHIPPED.items():
        other_cls, other_config = class_and_config(profile)
        if other == name or other_cls != cls:
            continue
        assert any(config[k] != other_config[k] for k in config.keys() & other_config.keys())


@pytest.mark.parametrize("name", SHIPPED)
def test_the_trained_length_follows_from_the_frames_it_names(name: str) -> None:
    """81 frames at 4 a latent are 21 latents; 2 latents a position make 11 positions of them."""
    profile = SHIPPED[name]
    if groups := re.match(r"(\d+) frames, (\d+) latents for (\d+)", str(provenance(profile))):  # and 2 for 5 at the end
        frames, latents, each = map(int, groups.groups())
        assert (frames - 5) % each == 0 and profile.trained_frames == (frames - 5) // each * latents + 2
        return
    found = re.match(r"(\d+) frames, (\d+) a latent(?:, (\d+) latents a position)?", str(provenance(profile)))
    if found is None:
        assert name in ("tiny-wan", "tiny-joint", "wan2.1-t2v-1.3b"), (
            "81 frames at 4 a latent, as the probe and the paper have them"
        )
        assert profile.trained_frames == 21
        return
    frames, each, patch = (int(n or 1) for n in found.groups())
    assert profile.trained_frames == math.ceil(((frames - 1) / each + 1) / patch)


def provenance(profile: Profile) -> Any:
    return dict(profile.provenance).get("trained_frames")


@pytest.mark.parametrize("name", SHIPPED)
def test_provenance_says_where_the_strategy_is_from(name: str) -> None:
    source = str(dict(SHIPPED[name].provenance)["source"])
    assert source == "solved, not probed" or source.startswith("probed") or source == "paper", source


# The same weights in another code base


def elsewhere(counts: dict[str, int]) -> nn.Module:
    """A module of no known class and without a configuration that has these matrices, beside vectors of its own."""
    model = nn.Module()
    shapes = [tuple(map(int, shape.split(" x "))) for shape, count in counts.items() for _ in range(count)]
    model.all = nn.ParameterList(nn.Parameter(torch.empty(shape, device="meta")) for shape in [*shapes, (7,)])
    return model


WEIGHED: dict[str, dict[str, int]] = {
    name: dict(found) for name, profile in SHIPPED.items() if (found := dict(profile.model or {}).get("weights"))
}


@pytest.mark.parametrize("name", WEIGHED)
def test_a_checkpoint_is_told_by_its_matrices(name: str) -> None:
    counts = WEIGHED[name]
    assert Profile.for_model(elsewhere(counts)).name == name
    first = next(iter(counts))
    for other in (counts | {first: counts[first] + 1}, {k: v for k, v in counts.items() if k != first}):
        with pytest.raises(ProfileError, match="no shipped profile is for this Module"):
            Profile.for_model(elsewhere(other))


@pytest.mark.parametrize("name", WEIGHED)
def test_the_matrices_are_those_of_the_class(name: str) -> None:
    cls, config = class_and_config(SHIPPED[name])
    width = config["num_attention_heads"] * config["attention_head_dim"]
    shapes = [tuple(map(int, shape.split(" x "))) for shape in WEIGHED[name]]
    (hidden,) = (rows for rows, columns in shapes if columns == width != rows)
    with torch.device("meta"):
        model = getattr(diffusers, cls)(**config, ffn_dim=hidden, out_channels=config["in_channels"])
    assert by_weights(SHIPPED[name].model, model)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [{"3 by 4": 1}, {"3 x 4": 0}, {"3 x 4": 1.5}, [3, 4]])
def test_malformed_counts_are_refused(weights: Any) -> None:
    with pytest.raises(ProfileError, match=r"model\.weights"):
        Profile(3, model={"class": "Any", "weights": weights})
