"""Prompts that change over time, as `freeloc generate` and `freeloc compare` take them.

freeloc generate --at 0 "a red circle ..." --at 10s "a blue circle ..."
freeloc generate "a red circle ..." --at 10s "a blue circle ..."
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from freeloc_fx.generation import pipelines as library
from freeloc_fx.generation.timeline import check_timeline

from .common import EXAMPLE, Job, UsageError

__all__ = ["At", "Blend", "Prompts", "apply", "told"]


Prompts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROMPT", help=f'What to show, e.g. "{EXAMPLE}"; with --at one for each time.', show_default=False
    ),
]


At = Annotated[
    list[str] | None,
    typer.Option(
        "--at", metavar="TIME", help="When a prompt begins, a frame or seconds: --at 0 PROMPT --at 10s PROMPT.",
        show_default="one prompt for the whole clip",
    ),
]  # fmt: skip


Blend = Annotated[
    str, typer.Option(help="With --at: frames, or seconds as in 1s, over which a prompt replaces the one before.")
]


def told(prompts: list[str] | None, times: list[str] | None, job: Job, fps: float, blend: str) -> str | dict[int, str]:
    """Read what a video is to show, and when.

    Args:
        prompts: in their order.
        times: when each begins; one less than prompts where the first begins at 0. None for one prompt.
        job: the checked request.
        fps: frames per second, for times in seconds.
        blend: how long a prompt takes to replace the one before.

    Returns:
        The prompt, or the frame at which each begins -> the prompt.

    Raises:
        UsageError: there are not as many prompts as times.
        TimelineError: the times do not rise from 0 inside the clip, or no latent frame shows one of the prompts.
    """
    prompts, times = prompts or [], times or []
    if len(prompts) == len(times) + 1:
        times = ["0", *times]
    if not prompts or len(prompts) != len(times):
        raise UsageError(
            f"expected a PROMPT, or one for each --at TIME, found {len(prompts)} and {len(times)}; quote a prompt of "
            "several words"
        )
    marks: dict[str | int, str] = {}
    for time, prompt in zip(times, prompts, strict=True):
        if time in marks:
            raise UsageError(f"--at {time}: expected times that rise, found it twice")
        marks[time] = prompt
    per_latent = max(1, (job.frames - 1) // max(job.latent[0] - 1, 1))  # a single frame is one of either kind
    timed = check_timeline(marks, job.frames, per_latent, blend, fps)
    return prompts[0] if len(timed) == 1 else timed


def apply(pipe: Any, job: Job, strategy: str | None, prompt: str | dict[int, str]) -> None:
    """Apply a strategy; the untouched model cannot tell frames' texts apart, so that "direct" is a strategy then.

    Args:
        pipe: loaded.
        job: the checked request.
        strategy: its name; None or "profile" for the profile's.
        prompt: what to show, or from which frame on to show what.
    """
    profile = job.profile
    if strategy == "direct" and not isinstance(prompt, str):
        profile, strategy = library.choose_profile(pipe.transformer, profile).with_layers("direct"), None
    library.apply(pipe, profile, strategy, backend=job.backend, attention=job.attention)
