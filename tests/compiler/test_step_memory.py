"""A denoising step holds no float32 copy of the queries or keys of all frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import wan, wan_inputs

from freeloc_fx import Profile, plan, transform
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.evaluation.cost import peak_bytes
from freeloc_fx.evaluation.sharing import rank_memory
from freeloc_fx.graph.shapes import value_of

PROFILE = Profile(trained_frames=5, layers="vrpr+tsa")
FUSED = ("placeholder", "output", "get_attr")


def held(graph: torch.fx.Graph, least: int) -> list[str]:
    """Float32 tensors of at least so many numbers that FlexAttention reads, which no compiler can fuse into it."""
    found = []
    for node in graph.nodes:
        if "flex_attention" not in str(node.target):
            continue
        for read in node.all_input_nodes:
            value = value_of(read)
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32 and value.numel() >= least:
                found.append(f"{node.name} reads {read.name}")
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_turned_queries_and_keys_have_the_model_s_dtype(dtype: torch.dtype) -> None:
    graphs: list[torch.fx.Graph] = []

    def keep(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(module.graph)
        return module.forward

    changed = transform(wan(dtype=dtype), PROFILE, backend=keep, attention="flex")
    with torch.no_grad():
        changed(**wan_inputs(12, dtype=dtype))
    reads = held(graphs[0], 12 * 4 * 24)
    assert sum("flex_attention" in str(node.target) for node in graphs[0].nodes) >= 2
    assert bool(reads) == (dtype == torch.float32), reads


@pytest.mark.slow
def test_a_compiled_step_takes_what_is_counted() -> None:
    """Counted: six tensors of tokens x width in bfloat16. A float32 copy of q would be two more, one of k as well."""
    config = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 128}
    model = wan(dtype=torch.bfloat16, **config)
    size = {"frames": 41, "height": 16, "width": 16}
    inputs = wan_inputs(41, 16, 16, dtype=torch.bfloat16)
    counted = rank_memory(plan(model, PROFILE, **size), model, layer_table(model), 1)
    assert counted.attention == 6 * 41 * 64 * 128 * 2 > counted.feed_forward

    def peak(run: Any) -> int:
        with torch.no_grad():
            run(**inputs)
            return peak_bytes(lambda: run(**inputs))

    eight = counted.attention * 8 // 6
    assert peak(transform(model, PROFILE, attention="tiles")) < eight
    eager = peak(transform(model, PROFILE, backend="eager", attention="tiles"))
    assert eager > eight, "the eager model holds such copies, so that the test can fail"
