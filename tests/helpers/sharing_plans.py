"""How to share out the tokens of models for which diffusers ships no plan."""

from __future__ import annotations

from typing import Any

__all__ = ["PLANS"]


def _split(axis: int, dims: int, output: bool = False) -> Any:
    from diffusers.models._modeling_parallel import ContextParallelInput

    return ContextParallelInput(split_dim=axis, expected_dims=dims, split_output=output)


def _gathered() -> Any:
    from diffusers.models._modeling_parallel import ContextParallelOutput

    return ContextParallelOutput(gather_dim=1, expected_dims=3)


def _joint(tables: int, *texts: str) -> dict[str, Any]:
    return {
        "transformer_blocks.0": {name: _split(1, 3) for name in ("hidden_states", *texts)},
        "transformer_blocks.*": {"image_rotary_emb": [_split(0, tables)] * 2},
        "proj_out": _gathered(),
    }


PLANS = {
    "text shared": lambda: _joint(2, "encoder_hidden_states"),
    "text whole": lambda: _joint(2),
    "Mochi": lambda: _joint(3),
    "HunyuanVideo": lambda: {
        "rope": {0: _split(0, 2, True), 1: _split(0, 2, True)},
        "transformer_blocks.0": {"hidden_states": _split(1, 3)},
        "proj_out": _gathered(),
    },
}
"""Context-parallel plans for models of which diffusers ships none."""
