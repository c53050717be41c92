"""Texts over time in sequences of which nothing says which part sees which text: refused by name, before any work."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conditioned import conditioned
from models import DiT, latents, rotate_half
from slow import slow
from torch import nn

from freeloc_fx import Profile, transform
from freeloc_fx.attention.running import running, within
from freeloc_fx.errors import TimelineError
from freeloc_fx.method.timeline import TextSchedule, span_weights

FRAMES, WORDS, CHANNELS = 9, 3, 4
LONG = Profile(trained_frames=4, layers="vrpr+tsa")


def telling(frames: int = FRAMES, one: int = WORDS) -> AbstractContextManager[None]:
    """Two texts of `one` tokens, the second from the fourth frame on."""
    made = TextSchedule(span_weights([0, 4], frames, 1, 2), (0, one, 2 * one), one)
    return within(replace(running(), texts=made))


class Joint(nn.Module):
    """A clip and its text in one sequence; keyframes in front of the clip, and text that is keys alone.

    Args:
        keyframes: times of further frames in front of the clip, as copies of its first ones.
        kind: "joint": text is queries, too. "keys": text is among the keys, where no query stands. "sides": as "keys",
            with half of the text before the video and half behind it.
    """

    def __init__(self, keyframes: tuple[float, ...] = (), kind: str = "joint") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.clip, self.keyframes, self.kind = DiT((3, 2, 2), layers=1), keyframes, kind
        self.blocks = self.clip.blocks
        self.words = nn.Linear(CHANNELS, 2 * 14)
        self.eval().requires_grad_(False)

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        shape = tuple(int(n) for n in hidden_states.shape[2:])
        x = self.clip.proj_in(hidden_states.flatten(2).transpose(1, 2))
        cos, sin = (table.double() for table in self.clip.tables(shape))  # type: ignore[arg-type]
        clip, frame = torch.complex(cos, sin), shape[1] * shape[2]
        moved = [torch.cat([torch.polar(torch.ones(3).double(), self.clip.omega(0) * t), torch.ones(4)])
                 for t in self.keyframes]  # fmt: skip
        turns = torch.cat([*(clip[:frame] * turn for turn in moved), clip])
        x = torch.cat([x[:, : frame * len(moved)].flip(1), x], 1)
        text, video = self.words(encoder_hidden_states), x.shape[1]
        for block in self.blocks:
            own, normed = block.attention, block.norm(torch.cat([x, text], 1))
            q, k, v = (layer(normed).unflatten(-1, (2, -1)).transpose(1, 2) for layer in (own.to_q, own.to_k, own.to_v))
            q, k = (
                torch.cat([rotate_half(z[:, :, :video], turns.real.float(), turns.imag.float()), z[:, :, video:]], 2)
                for z in (q, k)
            )
            first = WORDS if self.kind == "sides" else 0
            if self.kind != "joint":
                q = q[:, :, :video]
                k, v = (torch.cat([z[:, :, video : video + first], z[:, :, :video], z[:, :, video + first :]], 2)
                        for z in (k, v))  # fmt: skip
            out = own.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            x = x + out[:, :video]
            text = text + out[:, video:] if self.kind == "joint" else text
        result: torch.Tensor = self.clip.proj_out(x[:, frame * len(moved) :]).transpose(1, 2).unflatten(2, shape)
        return result


def call(model: nn.Module, texts: int, **options: Any) -> torch.Tensor:
    """A call with so many texts of `WORDS` tokens."""
    made = transform(model, options.pop("profile", LONG), backend="eager", **options)
    text = torch.randn(1, texts * WORDS, CHANNELS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result: torch.Tensor = made(latents(FRAMES, 2, 3), text)
    return result


@pytest.mark.parametrize("trained", [4, slow(FRAMES)])
@pytest.mark.parametrize("options", [{"verify": True}, slow({}), slow({"attention": "flex"})], ids=str)
def test_keyframes_in_one_sequence_with_the_text(trained: int, options: dict[str, Any]) -> None:
    profile = replace(LONG, trained_frames=trained)
    assert call(Joint((7.0, 2.5)), 1, profile=profile, **options).isfinite().all(), "without a timeline it runs"
    with telling(), pytest.raises(TimelineError, match=r"2 further frames beside the clip's 9; expected the clip's"):
        call(Joint((7.0, 2.5)), 2, profile=profile, **options)
    with telling():
        assert call(Joint(), 2, profile=profile, **options).isfinite().all()


@pytest.mark.parametrize("kind", ["keys", slow("sides")])
@pytest.mark.parametrize("trained", [4, slow(FRAMES)])
def test_text_among_keys_that_no_query_stands_at(kind: str, trained: int) -> None:
    profile = replace(LONG, trained_frames=trained)
    texts = 1 if kind == "keys" else 2
    assert call(Joint(kind=kind), texts, profile=profile).isfinite().all()
    words = "no query stands at" if kind == "keys" else r"one attention over the clip and 3 \+ 3 tokens of text"
    with telling(), pytest.raises(TimelineError, match=words):
        call(Joint(kind=kind), 2, profile=profile)


@pytest.mark.parametrize("trained", [4, slow(12)])
def test_keyframes_beside_cross_attention(trained: int) -> None:
    """LTX with keyframes and a reference clip, as its pipeline for conditions has them."""
    case = conditioned("LTX", 8)
    like = case.given["encoder_hidden_states"]
    given = {**case.given, "encoder_hidden_states": torch.cat([like, like.flip(1)], 1)}
    given["encoder_attention_mask"] = given["encoder_attention_mask"].repeat(1, 2)
    changed = transform(case.model, replace(LONG, trained_frames=trained), backend="eager")
    with (
        telling(8, like.shape[1]),
        torch.no_grad(),
        pytest.raises(TimelineError, match="4 further frames beside"),
    ):
        changed(**given)
