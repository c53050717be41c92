"""Calls of a transformed model with texts over time: which calls these are, and what they run.

What a graph depends on is how many tokens and texts the text axis has, so that one is captured for that, and every
timeline of as many texts runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from freeloc_fx.compat import plain_call, uses_cuda_graphs
from freeloc_fx.compiler.backend import Backend
from freeloc_fx.errors import TimelineError
from freeloc_fx.method.timeline import TextForm, TextSchedule

__all__ = ["Scheduled", "schedule_of_call"]

TEXT = "encoder_hidden_states"
"""The argument of a forward that holds the text, (batch, tokens, channels)."""


MASK = "encoder_attention_mask"
"""The argument of a forward that says which of its tokens are no padding, (batch, tokens)."""


def schedule_of_call(model: str, told: TextSchedule | None, given: Mapping[str, Any]) -> TextSchedule | None:
    """What a call's frames see of its text.

    Args:
        model: class name, for messages.
        told: what the generation that makes the call has been told.
        given: forward's arguments by name.

    Returns:
        The schedule; None for a call with one text for all frames, such as that of a negative prompt.

    Raises:
        TimelineError: the text is neither all of the timeline's texts nor one.
    """
    if told is None:
        return None
    text = given.get(TEXT)
    if not isinstance(text, torch.Tensor) or text.ndim != 3:
        found = tuple(text.shape) if isinstance(text, torch.Tensor) else type(text).__name__
        raise TimelineError(f"timeline: {model}: expected {TEXT} of (batch, tokens, channels), found {found}")
    tokens = int(text.shape[1])
    if tokens == told.tokens:
        mask = given.get(MASK)
        if told.shown is None:
            return told
        if not isinstance(mask, torch.Tensor) or mask.shape != text.shape[:2]:
            raise TimelineError(f"timeline: {model}: expected {MASK} of (batch, tokens) beside texts that are packed")
        return told.for_rows([int(count) for count in mask.bool().sum(1).tolist()])
    if tokens == told.one:
        return None
    raise TimelineError(
        f"timeline: {model}: expected the {told.tokens} tokens of {told.texts} texts, or the {told.one} of one text "
        f"for all frames, found {tokens}; pass the pipeline what freeloc_fx.timeline gave as it is"
    )


class Scheduled:
    """A model's calls with texts over time, captured once for each number of tokens and texts.

    Args:
        model: the transformed model.
        backend: of its calls with one text.
    """

    def __init__(self, model: nn.Module, backend: Backend) -> None:
        self.kind, self.backend = type(model).__name__, backend
        self._plain = plain_call(model)
        self._made: dict[TextForm, tuple[Callable[..., Any], Backend]] = {}

    def call_for(self, texts: TextSchedule) -> Callable[..., Any]:
        """The compiled call for the texts of a call.

        Args:
            texts: what its frames see.

        Returns:
            A callable of the model's arguments.

        Raises:
            TimelineError: the compiler would record the first timeline's attention and repeat it.
        """
        if uses_cuda_graphs(self.backend.inner):
            raise TimelineError(
                f"timeline: {self.kind}: the backend records CUDA graphs, which would repeat the first timeline; "
                "expected another mode, e.g. 'max-autotune-no-cudagraphs'"
            )
        if texts.form not in self._made:
            # A backend of its own: Dynamo would take the capture of a call with one text of as many tokens.
            made = self.backend.for_texts(texts.form)
            self._made[texts.form] = torch.compile(self._plain, backend=made, fullgraph=True, dynamic=False), made
        return self._made[texts.form][0]

    def refuse_blocks(self, reason: str) -> TimelineError:
        """The error for a model that is captured block by block.

        Args:
            reason: why it is.
        """
        return TimelineError(
            f"timeline: {self.kind} is captured block by block ({reason}), and what runs between its blocks may mix "
            "the texts; expected a model that is one graph"
        )

    def refuse_ranks(self, group: object) -> None:
        """Refuse a call whose tokens are shared out over ranks, each of which holds a part of the clip's frames.

        Args:
            group: of the ranks that share out the tokens of a call; None where they are not shared out.

        Raises:
            TimelineError: there is one.
        """
        if group is not None:
            raise TimelineError(
                f"timeline: {self.kind}: the tokens of a call are shared out over ranks, and which frames see which "
                "text is not known there; expected a model without context parallelism, or one prompt for the clip"
            )
