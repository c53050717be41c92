"""What two generations at once may not share: they take turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from freeloc_fx.compiler.capture.state import lock_of

__all__ = ["taking_turns"]


@contextmanager
def taking_turns(pipe: Any) -> Iterator[None]:
    """Context: no other generation uses this pipeline's scheduler or VAE, in whatever pipeline.

    A scheduler counts its steps, and Wan's VAE keeps what it decoded last, so two threads at one of them make videos of
    one another. Transformed models take turns by themselves, call by call.

    Args:
        pipe: a diffusers pipeline.
    """
    parts = [
        part for name in ("scheduler", "audio_scheduler", "vae") if (part := getattr(pipe, name, None)) is not None
    ]
    with ExitStack() as held:
        for part in sorted(parts or [pipe], key=id):  # in one order, so that nobody waits for somebody who waits
            held.enter_context(lock_of(part))
        yield
