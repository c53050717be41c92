"""Texts over time for a pipeline: what it takes in place of a prompt, and what its transformed model is to make of it.

freeloc_fx.enable(pipe)
inputs = freeloc_fx.timeline(pipe, {0: "a red circle ...", "10s": "a blue circle ..."}, num_frames=321, fps=16)
pipe(**inputs, num_frames=321)

The texts lie one after the other on the model's text axis. Which frames see which is kept on the tensor itself and read
by the pipeline's call, so that it holds for that call, in that thread, and nothing else.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from freeloc_fx.compiler.capture.conventions import check_text_tokens, keeps_text_in_step
from freeloc_fx.compiler.capture.state import state_of
from freeloc_fx.compiler.capture.timed_texts import TimedTexts
from freeloc_fx.errors import LengthError, TimelineError
from freeloc_fx.method.timeline import TextSchedule, check_marks, span_weights, video_frames

from .components import check_pipeline
from .request import Facts, check_frames
from .watching import is_watched, watch
from .windows import windowed_model

__all__ = ["check_timeline", "marks_of", "timeline"]

_OURS = {"prompt", "negative_prompt", "do_classifier_free_guidance", "num_videos_per_prompt", "num_images_per_prompt"}
"""Arguments of a pipeline's `encode_prompt` that are decided here."""


@dataclass(frozen=True)
class _Encoded:
    """One text as a pipeline encodes it.

    Args:
        embeds: (batch, tokens, channels).
        mask: (batch, tokens), not 0 on tokens of the text; None where the pipeline has none.
        pooled: (batch, channels), the text in one vector; None where the pipeline has none.
        counts: (batch + 1,), tokens of a batch's texts summed up, of a pipeline that does not pad them to one length;
            None where the pipeline does.
    """

    embeds: torch.Tensor
    mask: torch.Tensor | None
    pooled: torch.Tensor | None
    counts: torch.Tensor | None = None

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """What pipelines call these."""
        return {
            "prompt_embeds": self.embeds, "prompt_embeds_qwen": self.embeds, "prompt_attention_mask": self.mask,
            "pooled_prompt_embeds": self.pooled, "prompt_embeds_clip": self.pooled, "prompt_cu_seqlens": self.counts,
        }  # fmt: skip


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


def check_timeline(
    texts: Mapping[Any, Any], num_frames: int, temporal: int, blend: int | str, fps: float | None = None
) -> dict[int, Any]:
    """Read a timeline and refuse one that a model cannot show, before there is a model.

    Args:
        texts: as of `timeline`.
        num_frames: frames of the video.
        temporal: video frames that one latent frame stands for.
        blend: as of `timeline`.
        fps: as of `timeline`.

    Returns:
        Video frame -> what begins there.

    Raises:
        TimelineError: a time cannot be read, the times do not rise from 0 inside the clip, or a text is seen by no
            latent frame.
    """
    marks = marks_of(texts, num_frames, fps)
    span_weights(list(marks), num_frames, temporal, video_frames(blend, fps))
    return marks


def timeline(
    pipe: Any,
    texts: Mapping[Any, str | Sequence[str]],
    *,
    num_frames: int,
    blend: int | str = 16,
    fps: float | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    **encoding: Any,
) -> dict[str, Any]:
    """Make what a pipeline takes in place of a prompt where the prompt changes over time.

    The result goes into one or more calls of this pipeline as it is, `pipe(**inputs, num_frames=...)`: its tensors
    carry which frames see which text, on any device and in any dtype, and no other call takes them. One text for the
    whole clip is the plain call.
    Reference images that VACE puts in front of the clip are of no time: they see each text by its share of the clip.

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
            not enabled, it takes no embeddings, or its model has no place for as many tokens of text.
        LengthError: the model cannot make this many frames.
        TransformError: the pipeline has no transformer.
        TypeError: `pipe` is a model, or an argument that its `encode_prompt` does not take.
    """
    models = check_pipeline(pipe)
    facts = Facts.of(pipe)
    check_frames(facts, num_frames, argument="num_frames")
    if (num_frames - 1) % facts.temporal:
        raise LengthError(
            f"num_frames={num_frames}: expected {facts.temporal}n+1 frames, by which texts are told to latent frames"
        )
    marks = check_timeline(texts, num_frames, facts.temporal, blend, fps)
    named = inspect.signature(pipe.__call__).parameters if callable(pipe) else {}
    if not {"prompt_embeds", "prompt_embeds_qwen"} & named.keys() or not hasattr(pipe, "encode_prompt"):
        raise TimelineError(
            f"timeline: {type(pipe).__name__}: expected a pipeline that takes prompt_embeds and has encode_prompt"
        )
    texts_at = _merged(marks)
    weights = span_weights(list(texts_at), num_frames, facts.temporal, video_frames(blend, fps))
    if len(texts_at) > 1:
        _check_enabled(pipe, models)
    options = {k: p.default for k, p in named.items() if p.default is not inspect.Parameter.empty} | encoding
    parts = [_encoded(pipe, text, options, encoding) for text in texts_at.values()]
    counts = any(part.counts is not None for part in parts)
    if counts and negative_prompt is None:
        raise TimelineError(
            f"timeline: {type(pipe).__name__} has a negative prompt of its own, whose number of tokens is not known; "
            "expected negative_prompt"
        )
    default = named["negative_prompt"].default if "negative_prompt" in named else None
    without = _encoded(pipe, _negative(negative_prompt or default or "", marks[0]), options, encoding)
    made = parts[0]
    if len(parts) > 1:
        packed = made.mask is not None and any(map(keeps_text_in_step, models.values()))
        made, starts, shown = _joined(parts, packed)
        for model in models.values():
            check_text_tokens(model, starts[-1])
        one, negative = without.embeds.shape[1], None
        if counts and one == starts[-1]:
            raise TimelineError(
                f"timeline: the texts have {one} tokens together, and so has the negative prompt, so that a call "
                "cannot tell which it got; expected a negative prompt of a word more or less"
            )
        share = weights.mean(0)
        pooled = [part.pooled * float(w) for part, w in zip(parts, share, strict=True) if part.pooled is not None]
        made = replace(made, pooled=torch.stack(pooled).sum(0) if pooled else None)
        if not counts:  # once for each text, where the call makes one batch of both; each frame sees it once
            repeated, places, there = _joined([without] * len(parts), packed)
            without = replace(repeated, pooled=without.pooled)
            negative = None if there is None else (*places[:-1], there)
        weights = np.concatenate([weights[:1].repeat(facts.latent_frames(num_frames)[0], 0), weights])
        texts_on = TextSchedule(weights, starts, one, shown, negative)
        made = replace(made, embeds=TimedTexts.of(made.embeds, texts_on))
    return {
        name: value
        for prefix, text in (("", made), ("negative_", without))
        for suffix, value in text.arguments().items()
        if value is not None and (name := f"{prefix}{suffix}") in named
    }


def _merged(marks: Mapping[int, Any]) -> dict[int, Any]:
    """A timeline in which a text that goes on is one text."""
    made: dict[int, Any] = {}
    for mark, text in marks.items():
        if not made or text != made[next(reversed(made))]:
            made[mark] = text
    return made


def _negative(text: str | Sequence[str], first: str | Sequence[str]) -> str | list[str]:
    """A negative prompt for as many videos as a text is for."""
    if isinstance(text, str):
        return text if isinstance(first, str) else [text] * len(first)
    return list(text)


def _check_enabled(pipe: Any, models: Mapping[str, nn.Module]) -> None:
    """Refuse a pipeline whose call would pass all texts to a model that shows each of them to every frame."""
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
    missing = [k for k, p in takes.items() if p.default is p.empty and k not in (*_OURS, *given)
               and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]  # fmt: skip
    if missing:
        raise TimelineError(
            f"timeline: {type(pipe).__name__}.encode_prompt wants {', '.join(missing)} beside the text; pass it to "
            "timeline by name"
        )
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
    counts = next((x for x in tensors if x.ndim == 1 and not x.is_floating_point()), None)
    return _Encoded(embeds[0], masks[0] if masks else None, pooled[0] if pooled else None, counts)


def _joined(parts: Sequence[_Encoded], packed: bool) -> tuple[_Encoded, tuple[int, ...], int | None]:
    """Texts one after the other, where each begins, and how many tokens are no padding where that is at the end.

    Args:
        parts: the texts.
        packed: their padding goes to the end of all, since the model takes the first tokens for those that there are.
    """
    batch, one, channels = parts[0].embeds.shape
    if not packed:
        embeds = torch.cat([part.embeds for part in parts], 1)
        masks = [part.mask for part in parts if part.mask is not None]
        starts = tuple(itertools.accumulate((part.embeds.shape[1] for part in parts), initial=0))
        counts = parts[0].counts
        if counts is not None:
            counts = torch.arange(batch + 1, device=counts.device, dtype=counts.dtype) * starts[-1]
        return _Encoded(embeds, torch.cat(masks, 1) if masks else None, None, counts), starts, None
    total, starts_at = one * len(parts), [0]
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
        place = slice(starts_at[-1], starts_at[-1] + sizes[0])
        embeds[:, place] = part.embeds[valid].unflatten(0, (batch, -1))
        mask[:, place] = part.mask[valid].unflatten(0, (batch, -1))
        starts_at.append(place.stop)
    return _Encoded(embeds, mask, None), (*starts_at[:-1], total), starts_at[-1]
