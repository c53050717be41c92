"""Which frames of a pipeline's call see which text: kept on a tensor of its arguments, and told to its models.

So it holds for that call, in that thread, and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from freeloc_fx.attention.running import running, within
from freeloc_fx.compiler.capture.conventions import config_of
from freeloc_fx.compiler.capture.timed_texts import TimedTexts
from freeloc_fx.errors import TimelineError
from freeloc_fx.method.timeline import TextSchedule

from .request import Facts

__all__ = ["by_name", "references", "schedule_of", "telling", "without_schedule"]


@contextmanager
def telling(pipe: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Iterator[None]:
    """Context: transformed models know of the texts over time among a pipeline call's arguments.

    Args:
        pipe: that is called.
        args: the positional arguments of the call.
        named: the named arguments of the call.

    Raises:
        TimelineError: the call is for another number of frames than the timeline, or the texts were changed.
    """
    found = [texts for value in (*args, *named.values()) if (texts := schedule_of(value)) is not None]
    if not found:
        with within(replace(running(), texts=None)) if running().texts is not None else _nothing():
            yield
        return
    given = by_name(pipe, args, named)
    frames = given.get("num_frames")
    if isinstance(frames, int):
        facts = Facts.of(pipe)
        if sum(facts.latent_frames(frames)) != found[0].frames:
            length = _length(facts, found[0].frames)
            made = f"{found[0].frames} latent frames" if length is None else f"num_frames={length}"
            raise TimelineError(f"timeline: it was made for {made}, and the call is for num_frames={frames}")
    leading = references(pipe, given.get("reference_images"))
    with within(replace(running(), texts=found[0].with_references(leading))):
        yield


def _length(facts: Facts, latent: int) -> int | None:
    """The length of a video in frames, of those that texts may be told for, that has so many latent frames."""
    every = range(1, latent * facts.temporal + 1, facts.every)
    told = (frames for frames in every if (frames - 1) % facts.temporal == 0)
    return next((frames for frames in told if sum(facts.latent_frames(frames)) == latent), None)


def by_name(pipe: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a pipeline's call by name, with the defaults of those that were not given.

    Args:
        pipe: that is called.
        args: the positional arguments of the call.
        named: the named arguments of the call.
    """
    try:
        bound = inspect.signature(pipe.__call__).bind_partial(*args, **named)
    except TypeError:  # which the call itself will say
        return named
    bound.apply_defaults()
    return bound.arguments


def references(pipe: Any, images: Any) -> int:
    """Latent frames that a pipeline's call puts in front of the clip for reference images, one an image.

    Pipelines of models that are controlled by channels of a video (VACE) do; what others do with images of this name
    is not known, and a clip of other frames than the timeline's is refused by the model.

    Args:
        pipe: that is called.
        images: its argument: one image, a list of them, or a list of such lists, one a video; None for none.
    """
    if images is None or "vace_in_channels" not in config_of(Facts.of(pipe).transformer):
        return 0
    if not isinstance(images, (list, tuple)):
        return 1
    first = images[0] if images else ()
    return len(first) if isinstance(first, (list, tuple)) else len(images)


def schedule_of(value: Any) -> TextSchedule | None:
    """Which frames see which text, as a tensor that `timeline` made carries it; None for anything else.

    Args:
        value: any argument of a pipeline's call.

    Raises:
        TimelineError: it was made of such a tensor, and may not be the same texts any more.
    """
    if not isinstance(value, TimedTexts):
        return None
    if value.texts is None:
        raise TimelineError(
            "timeline: its texts were changed before the call; expected them as freeloc_fx.timeline made them, on any "
            "device and in any dtype"
        )
    return value.texts


def without_schedule(value: Any) -> Any:
    """An argument of a pipeline's call as the pipeline knows it: texts over time as an ordinary tensor.

    Args:
        value: any argument.
    """
    return value.plain() if isinstance(value, TimedTexts) else value


@contextmanager
def _nothing() -> Iterator[None]:
    yield
