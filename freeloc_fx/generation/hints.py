"""Warnings about pipelines that run, but would make something other than their user expects without a word.

A profile's `trained_frames` counts latent frames, and a pipeline's `num_frames` counts frames of the video. Where the
first is given in the unit of the second, long clips count as within the trained length and nothing is rewritten.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from freeloc_fx.compat import compiled_call
from freeloc_fx.compiler.capture.conventions import config_of
from freeloc_fx.compiler.capture.state import State, state_of
from freeloc_fx.method.checks import is_whole
from freeloc_fx.planning.profile import Profile

from .components import first_transformer, transformers_of
from .request import Facts
from .telling import by_name, references

__all__ = [
    "call_counts",
    "check_references",
    "check_transformers",
    "check_unit",
    "checking_calls",
    "unit_hint",
    "usual_frames",
]

log = logging.getLogger("freeloc_fx")


def unit_hint(profile: Profile, temporal: int, usual: int | None, num_frames: int | None = None) -> str | None:
    """Say what is wrong if a profile's trained length seems to be given in video frames.

    A clip of exactly the trained length has more video frames than the profile has latent frames too, so the numbers of
    one request do not tell. What does: the profile is made by hand, its trained length is a number of frames that the
    VAE can make, and the clip that the pipeline makes by default is shorter than such a length in latent frames.

    Args:
        profile: the one that is used.
        temporal: video frames that one latent frame stands for.
        usual: video frames that the pipeline makes by default; None where it does not say, and then nothing is found.
        num_frames: video frames that are asked for; None: no request yet, and then only a trained length of at least
            the usual video frames is found.

    Returns:
        The sentence for a warning, or None.
    """
    trained = profile.trained_frames
    if profile.model is not None or usual is None or temporal < 2 or trained % temporal != 1:
        return None
    if trained <= _latent(usual, temporal):
        return None
    meant = _latent(trained, temporal)
    advice = f"; if {trained} was meant as frames of the video, write trained_frames={meant}"
    if num_frames is None:
        if trained < usual:
            return None
        return (
            f"profile {profile.name!r}: trained_frames={trained} counts latent frames, as many as a clip of "
            f"{(trained - 1) * temporal + 1} frames has, and this pipeline makes {usual} frames by default{advice}"
        )
    latent = _latent(num_frames, temporal)
    if not num_frames > trained >= latent:
        return None
    return (
        f"profile {profile.name!r}: trained_frames={trained} counts latent frames, and the {num_frames} frames asked "
        f"for are {latent} latent frames: they are within the trained length, so nothing is rewritten{advice}"
    )


def _latent(frames: int, temporal: int) -> int:
    """Latent frames of a clip of so many video frames."""
    return (frames - 1) // temporal + 1


def usual_frames(pipe: Any) -> int | None:
    """Read how many video frames a pipeline makes where a call does not say.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        The default of `num_frames`, else the transformer's `sample_frames`, else None.
    """
    known = inspect.signature(pipe.__call__).parameters.get("num_frames") if callable(pipe) else None
    for value in (
        known.default if known is not None else None,
        config_of(first_transformer(pipe)).get("sample_frames"),
    ):
        if is_whole(value, 1):
            return value
    return None


def check_unit(pipe: Any, profile: Profile, num_frames: int | None = None) -> None:
    """Warn, once for a pipeline and request, if a profile's trained length seems to be given in video frames.

    The transformed models look for the same in their own calls, and leave it to the pipeline once it has spoken; so
    does the pipeline where a model has.

    Args:
        pipe: a diffusers pipeline.
        profile: the one that is used.
        num_frames: video frames that are asked for; None: none yet.
    """
    message = unit_hint(profile, Facts.of(pipe).temporal, usual_frames(pipe), num_frames)
    if message is None:
        return
    checks = [state.units for state in map(state_of, transformers_of(pipe).values()) if state is not None]
    if not any(check.spoke for check in checks):
        _warn(pipe, message)
    for check in checks:
        check.quiet = True


def check_references(pipe: Any, args: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Warn, once for a pipeline and length, if a clip is rewritten for no more than its reference images.

    Models that are controlled by channels of a video (VACE) get them as frames in front of the clip, which nothing in
    their input tells from it, so they count.

    Args:
        pipe: that is called.
        args: the positional arguments of the call.
        named: the named arguments of the call.
    """
    given = by_name(pipe, args, named)
    more, frames = references(pipe, given.get("reference_images")), given.get("num_frames")
    found = [state for state in map(state_of, transformers_of(pipe).values()) if state is not None]
    states = [state for state in found if set(state.backend.profile.strategy_names) - {"direct"}]
    if not more or not states or not is_whole(frames, 1):
        return
    count, trained = sum(Facts.of(pipe).latent_frames(frames)), states[0].backend.profile.trained_frames
    if count <= trained < count + more:
        _warn(
            pipe,
            f"{type(pipe).__name__}: reference images are latent frames too, {more} in front of the clip's {count}, so "
            f"it counts as {count + more}, more than the {trained} that profile {states[0].backend.profile.name!r} was "
            f"made for, and is rewritten; where references were part of training, trained_frames={trained + more} "
            "leaves it as it is",
        )


def check_transformers(pipe: Any) -> None:
    """Warn, once for a pipeline, if one of its two transformers is transformed and the other is not.

    Args:
        pipe: a diffusers pipeline.
    """
    states = {name: state_of(model) for name, model in transformers_of(pipe).items()}
    done = {name: state is not None and state.backend.recorder is None for name, state in states.items()}
    if len(set(done.values())) == 2:
        changed, untouched = (next(name for name, value in done.items() if value is wanted) for wanted in (True, False))
        _warn(
            pipe,
            f"{type(pipe).__name__}: {changed} is transformed and {untouched} is not, so what the pipeline runs "
            f"through {untouched} is without the profile; freeloc_fx.enable(pipe, ...) transforms both",
        )


@contextmanager
def checking_calls(pipe: Any) -> Iterator[None]:
    """Warn, once for a pipeline, if a generation ran within the context and called no transformed model.

    A pipeline that runs a model's blocks itself gets the untouched blocks, and nothing else would say so. Where one of
    two transformed models was called, the other had no step of its own.

    Args:
        pipe: a diffusers pipeline.
    """
    before = call_counts(pipe)
    yield
    after = call_counts(pipe)
    if not before or before.keys() != after.keys() or any(after[state] != calls for state, calls in before.items()):
        return
    names = [name for name, model in transformers_of(pipe).items() if state_of(model) in before]
    kind, profile = type(next(iter(before)).original).__name__, next(iter(before)).backend.profile.name
    _warn(
        pipe,
        f"{type(pipe).__name__}: {' and '.join(names)} ({kind}) was never called in this generation, although it is "
        f"transformed by profile {profile!r}: nothing was rewritten, the video is what the untouched model makes. "
        f"Expected the pipeline to call {names[0]}(hidden_states, ...); one that runs the model's blocks itself has "
        "to call the model in their place, or that loop has to become the forward of a module given to transform",
    )


def call_counts(pipe: Any) -> dict[State, int]:
    """Count the calls of a pipeline's transformed models.

    Args:
        pipe: a diffusers pipeline.

    Returns:
        Calls so far of each; a model whose calls somebody passes over for now is left out.
    """
    models = transformers_of(pipe).values()
    states = (state_of(model) for model in models if compiled_call(model) is not None)
    return {state: state.calls for state in states if state is not None}


def _warn(pipe: Any, message: str) -> None:
    """Log a warning that was not logged for this pipeline before."""
    said = vars(pipe).setdefault("_freeloc_said", set())
    if message not in said:
        said.add(message)
        log.warning("%s", message)
