"""Texts over time for a pipeline: what it takes in place of a prompt, and what its transformed model is to make of it.

freeloc_fx.enable(pipe)
inputs = freeloc_fx.timeline(pipe, {0: "a red circle ...", "10s": "a blue circle ..."}, num_frames=321, fps=16)
pipe(**inputs, num_frames=321)

The texts lie one after the other on the model's text axis. Which frames see which is kept on the tensor itself and read
by the pipeline's call, so that it holds for that call, in that thread, and nothing else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from freeloc_fx.attention.running import running, within
from freeloc_fx.compiler.capture.conventions import keeps_text_in_step
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.errors import TimelineError
from freeloc_fx.method.timeline import TextSchedule, check_marks, span_weights, video_frames

from .components import check_pipeline
from .request import Facts, check_frames

__all__ = ["marks_of", "telling", "timeline"]

_KEY = "_freeloc_texts"
_OURS = {"prompt", "negative_prompt", "do_classifier_free_guidance", "num_videos_per_prompt", "num_images_per_prompt"}
"""Arguments of a pipeline's `encode_prompt` that are decided here."""


@dataclass(frozen=True)
class _Encoded:
    """One text as a pipeline encodes it.

    Args:
        embeds: (batch, tokens, channels).
        mask: (batch, tokens), not 0 on tokens of the text; None where the pipeline has none.
        pooled: (batch, channels), the text in one vector; None where the pipeline has none.
    """

    embeds: torch.Tensor
    mask: torch.Tensor | None
    pooled: torch.Tensor | None


def marks_of(texts: Mapping[Any, Any], num_frames: int, fps: float | None = None) -> dict[int, Any]:
    """Read the times of a timeline.

    Args:
        texts: time -> what begins there; see `video_frames` for times.
        num_frames: frames of the video.
        fps: video frames per second, for times in seconds.

    Returns:
        Video frame -> what begins there.

    Raises:
        TimelineError: a time cannot be read, or the times do not rise from 0 inside the clip.
    """
    if not isinstance(texts, Mapping):
        raise TimelineError(f"timeline: expected a mapping of times to texts, found {type(texts).__name__}")
    marks = [video_frames(time, fps) for time in texts]
    check_marks(marks, num_frames)
    return dict(zip(marks, texts.values(), strict=True))


def timeline(
    pipe: Any,
    texts: Mapping[int | str, str | Sequence[str]],
    *,
    num_frames: int,
    blend: int | str = 16,
    fps: float | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    **encoding: Any,
) -> dict[str, Any]:
    """Make what a pipeline takes in place of a prompt where the prompt changes over time.

    The result goes into one or more calls of this pipeline as it is, `pipe(**inputs, num_frames=...)`: its tensors
    carry which frames see which text, which a copy of them does not. One text for the whole clip is the plain call.

    Args:
        pipe: a diffusers pipeline that is enabled.
        texts: when each text begins -> the text, or one a video of a batch. A time is a frame of the video, or seconds
            as in "10s"; times rise from 0.
        num_frames: frames of the video, as of the call.
        blend: frames of the video, or seconds as in "1s", over which a text takes the place of the one before, from its
            time on; 0 for a step.
        fps: frames per second of the video, for times in seconds; None where there are none.
        negative_prompt: what the video is not to show, one text for all frames; None: the pipeline's default.
        **encoding: further arguments of the pipeline's `encode_prompt`, such as `max_sequence_length`.

    Returns:
        Arguments of the pipeline: `prompt_embeds`, and masks, pooled embeddings and those of the negative prompt where
        it takes them.

    Raises:
        TimelineError: the times do not rise from 0 inside the clip, a text is seen by no latent frame, the pipeline is
            not enabled, or it takes no embeddings.
        LengthError: the model cannot make this many frames.
        TransformError: the pipeline has no transformer.
        TypeError: `pipe` is a model.
    """
    models = check_pipeline(pipe)
    facts = Facts.of(pipe)
    check_frames(facts, num_frames, argument="num_frames")
    marks = marks_of(texts, num_frames, fps)
    weights = span_weights(list(marks), num_frames, facts.temporal, video_frames(blend, fps))
    named = inspect.signature(pipe.__call__).parameters if callable(pipe) else {}
    if "prompt_embeds" not in named or not hasattr(pipe, "encode_prompt"):
        raise TimelineError(
            f"timeline: {type(pipe).__name__}: expected a pipeline that takes prompt_embeds and has encode_prompt"
        )
    if len(marks) > 1:
        _check_enabled(pipe, models)
    options = {k: p.default for k, p in named.items() if p.default is not inspect.Parameter.empty} | encoding
    parts = [_encoded(pipe, text, options, encoding) for text in marks.values()]
    default = named["negative_prompt"].default if "negative_prompt" in named else None
    without = _encoded(pipe, _negative(negative_prompt or default or "", marks[0]), options, encoding)
    packed = parts[0].mask is not None and any(map(keeps_text_in_step, models.values()))
    made, starts = _joined(parts, packed) if len(parts) > 1 else (parts[0], (0, parts[0].embeds.shape[1]))
    if len(parts) > 1:
        share = weights.mean(0)
        pooled = [part.pooled * float(w) for part, w in zip(parts, share, strict=True) if part.pooled is not None]
        made = replace(made, pooled=torch.stack(pooled).sum(0) if pooled else None)
        # Once for each text, where the call makes one batch of both; each frame sees it once.
        without = without if packed else replace(_joined([without] * len(parts), False)[0], pooled=without.pooled)
        setattr(made.embeds, _KEY, TextSchedule(weights, starts, parts[0].embeds.shape[1]))
    found = {"prompt_embeds": made.embeds, "prompt_attention_mask": made.mask, "pooled_prompt_embeds": made.pooled}
    found |= {
        "negative_prompt_embeds": without.embeds,
        "negative_prompt_attention_mask": without.mask,
        "negative_pooled_prompt_embeds": without.pooled,
    }
    return {name: value for name, value in found.items() if value is not None and name in named}


def _negative(text: str | Sequence[str], first: str | Sequence[str]) -> str | list[str]:
    """A negative prompt for as many videos as a text is for."""
    if isinstance(text, str):
        return text if isinstance(first, str) else [text] * len(first)
    return list(text)


def _check_enabled(pipe: Any, models: Mapping[str, nn.Module]) -> None:
    """Refuse a pipeline whose call would pass all texts to a model that shows each of them to every frame."""
    from .watching import is_watched, watch
    from .windows import windowed_model

    for name, model in models.items():
        if state_of(windowed_model(model) or model) is None:
            raise TimelineError(
                f"timeline: {type(pipe).__name__}: {name} is not transformed, so every frame would see every text; "
                "expected freeloc_fx.enable(pipe, ...) before"
            )
    watch(pipe)  # one whose models were transformed by hand is not watched yet
    if not is_watched(pipe):
        raise TimelineError(
            f"timeline: {type(pipe).__name__}: expected a pipeline whose class takes a subclass, since its call has to "
            "say which frames see which text"
        )


def _encoded(pipe: Any, text: str | Sequence[str], options: Mapping[str, Any], encoding: Mapping[str, Any]) -> _Encoded:
    """One text by the pipeline's own encoder, with the defaults of the pipeline's call."""
    takes = inspect.signature(pipe.encode_prompt).parameters
    unknown = sorted(encoding.keys() - takes.keys())
    if unknown:
        raise TypeError(f"timeline: {type(pipe).__name__}.encode_prompt takes no {', '.join(unknown)}")
    given = {k: v for k, v in options.items() if k in takes and k not in _OURS and v is not None}
    if "do_classifier_free_guidance" in takes:
        given["do_classifier_free_guidance"] = False
    with torch.no_grad():
        result = pipe.encode_prompt(prompt=[text] if isinstance(text, str) else list(text), **given)
    tensors = [x for x in (result if isinstance(result, tuple) else (result,)) if isinstance(x, torch.Tensor)]
    embeds = [x for x in tensors if x.ndim == 3 and x.is_floating_point()]
    if len(embeds) != 1:
        raise TimelineError(
            f"timeline: {type(pipe).__name__}: expected encode_prompt to give one sequence of text states, "
            f"found {[tuple(x.shape) for x in tensors]}"
        )
    flat = [x for x in tensors if x.ndim == 2]
    masks = [x for x in flat if not x.is_floating_point() and x.shape == embeds[0].shape[:2]]
    pooled = [x for x in flat if x.is_floating_point()]
    return _Encoded(embeds[0], masks[0] if masks else None, pooled[0] if pooled else None)


def _joined(parts: Sequence[_Encoded], packed: bool) -> tuple[_Encoded, tuple[int, ...]]:
    """Texts one after the other, and where each begins.

    Args:
        parts: the texts.
        packed: their padding goes to the end of all, since the model takes the first tokens for those that there are.
    """
    batch, one, channels = parts[0].embeds.shape
    if not packed:
        masks = [part.mask for part in parts if part.mask is not None]
        joined = _Encoded(torch.cat([p.embeds for p in parts], 1), torch.cat(masks, 1) if masks else None, None)
        return joined, tuple(one * text for text in range(len(parts) + 1))
    total, starts = one * len(parts), [0]
    embeds = parts[0].embeds.new_zeros(batch, total, channels)
    mask = torch.zeros_like(parts[0].mask).repeat(1, len(parts))  # type: ignore[arg-type]
    for part in parts:
        assert part.mask is not None
        valid = part.mask.bool()
        sizes = valid.sum(1).tolist()
        if len(set(sizes)) > 1:
            raise TimelineError(
                f"timeline: expected the texts of a batch to have equally many tokens in this model, found {sizes}; "
                "make its videos one by one"
            )
        place = slice(starts[-1], starts[-1] + sizes[0])
        embeds[:, place] = part.embeds[valid].unflatten(0, (batch, -1))
        mask[:, place] = part.mask[valid].unflatten(0, (batch, -1))
        starts.append(place.stop)
    return _Encoded(embeds, mask, None), (*starts[:-1], total)


@contextmanager
def telling(pipe: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Iterator[None]:
    """Context: transformed models know of the texts over time among a pipeline call's arguments.

    Args:
        pipe: that is called.
        args: the positional arguments of the call.
        named: the named arguments of the call.

    Raises:
        TimelineError: the call is for another number of frames than the timeline.
    """
    found = [texts for value in (*args, *named.values()) if (texts := _texts_on(value)) is not None]
    if not found:
        with within(replace(running(), texts=None)) if running().texts is not None else _nothing():
            yield
        return
    known = inspect.signature(pipe.__call__).parameters.get("num_frames")
    frames = named.get("num_frames", known.default if known is not None else None)
    if isinstance(frames, int):
        temporal = Facts.of(pipe).temporal
        if (frames - 1) // temporal + 1 != found[0].frames:
            raise TimelineError(
                f"timeline: it was made for num_frames={(found[0].frames - 1) * temporal + 1}, and the call is for "
                f"num_frames={frames}"
            )
    with within(replace(running(), texts=found[0])):
        yield


def _texts_on(value: Any) -> TextSchedule | None:
    texts = getattr(value, _KEY, None) if isinstance(value, torch.Tensor) else None
    return texts if isinstance(texts, TextSchedule) else None


@contextmanager
def _nothing() -> Iterator[None]:
    yield
