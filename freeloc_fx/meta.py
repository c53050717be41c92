"""Records that analysis passes leave on graph nodes, all under one meta key.

Passes communicate through these records and nothing else: analysis writes them, planning and rewriting read them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch.fx as fx

if TYPE_CHECKING:
    from .profile import Sensitivity

__all__ = ["KEY", "AttentionSite", "RopeLayout", "TokenGrid", "dotted_path", "record", "sites", "write"]

KEY = "freeloc"


@dataclass(frozen=True)
class RopeLayout:
    """How temporal RoPE turns a head's channels.

    Channel pair p of head h is (first[p], second[p]); one latent frame turns it by omega[h][p] radians:
    (x1, x2) -> (x1 cos - x2 sin, x1 sin + x2 cos). `omega` has one row where all heads agree.

    residual: largest deviation of a measured rotation from this description, as a complex modulus. whole_turns: whether
    omega is the rate itself; False where frames only show it up to whole turns, which is enough for any turn by a whole
    number of frames and no other.
    """

    head_dim: int
    first: tuple[int, ...]
    second: tuple[int, ...]
    omega: tuple[tuple[float, ...], ...]
    residual: float = field(default=0.0, compare=False)
    whole_turns: bool = True

    @property
    def pairing(self) -> str:
        """Name of the spelling: "interleaved", "half" or "custom"."""
        steps = {b - a for a, b in zip(self.first, self.second, strict=True)}
        if steps == {1}:
            return "interleaved"
        return "half" if len(steps) == 1 else "custom"

    def of_heads(self, group: slice) -> RopeLayout:
        """The layout of the heads in `group`, which then are 0, 1, ..."""
        return replace(self, omega=self.omega[group]) if len(self.omega) > 1 else self


@dataclass(frozen=True)
class TokenGrid:
    """The tokens of a sequence: `text_first` text tokens, frames x height x width of video in raster order, `text_last`
    text tokens."""

    frames: int
    height: int
    width: int
    text_first: int = 0
    text_last: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in one latent frame."""
        return self.height * self.width

    @property
    def video(self) -> int:
        """Video tokens."""
        return self.frames * self.tokens

    @property
    def text(self) -> int:
        """Text tokens, at either end."""
        return self.text_first + self.text_last

    @property
    def sequence(self) -> int:
        return self.video + self.text


@dataclass(frozen=True)
class AttentionSite:
    """One softmax attention call in the captured graph.

    path: module path, "blocks.3.attn1". kind: "video" (self-attention over tokens with temporal RoPE), "cross", or
    "other"; `reason` says why a site is not "video". layer: index among the model's layers. query_shape, key_shape:
    (batch, heads, tokens, head_dim). scale: factor on q k, None for 1/sqrt(head_dim). mask: the node of the model's
    key-padding mask, None for none. padded: the number of tokens depends on data (padded text is left out by indexing);
    the shapes count all that there may be.
    """

    path: str
    layer: int
    kind: Literal["video", "cross", "other"]
    query_shape: tuple[int, ...]
    key_shape: tuple[int, ...]
    scale: float | None = None
    reason: str = ""
    rope: RopeLayout | None = None
    grid: TokenGrid | None = None
    sensitivity: Sensitivity | None = None
    mask: fx.Node | None = field(default=None, compare=False)
    padded: bool = False


def record(node: fx.Node) -> AttentionSite | None:
    """The record on a node, or None."""
    found = node.meta.get(KEY)
    assert found is None or isinstance(found, AttentionSite)
    return found


def write(node: fx.Node, site: AttentionSite | None = None, **changes: object) -> None:
    """Put a record on a node, or change fields of the one that is there."""
    current = site if site is not None else record(node)
    assert current is not None, f"{node} carries no record to change"
    node.meta[KEY] = replace(current, **changes)  # type: ignore[arg-type]


def sites(graph: fx.Graph) -> list[tuple[fx.Node, AttentionSite]]:
    """Every node with a record, in execution order."""
    return [(node, site) for node in graph.nodes if (site := record(node)) is not None]


def dotted_path(spelled: object) -> str:
    """A module or tensor as Dynamo spells where it comes from, "L['self']._modules['blocks'].3", as "blocks.3"."""
    names = re.findall(r"[A-Za-z_]\w*|\d+", str(spelled))
    return ".".join(n for n in names if n not in _NOT_IN_PATHS)


_NOT_IN_PATHS = ("L", "self", "__dict__", "_modules", "_parameters", "_buffers", "_orig_mod", "mod")
