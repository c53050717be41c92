"""What would a GPU be given? A rewritten block of Wan 2.1 1.3B compiled for an H100 on a machine without one.

    python bench/cuda_offline.py                               # wants a CUDA build of torch 2.14, no GPU
    python bench/cuda_offline.py --strategies vrpr --times 4

Every piece goes through Inductor and Triton down to the GPU's instructions, as `attention="flex"` makes it: 832x480,
bfloat16, 12 heads of 128 channels, trained on 21 latent frames. Nothing runs, so nothing is timed and no result is
compared: that is `bench/cuda.py`'s to do. What can be seen is whether everything compiles, whether FlexAttention's
kernels keep to their registers (what is spilled goes to memory and back), and how much memory the attention holds at
once beside q, k and v (the buffers of Inductor's own wrapper code, counted; a mixture's FFTs have none there, so that
its cell is empty). The last rows show what was mended by this: all calls of a layer compiled as one piece, and a mask
function that looks pairs of frames up in a table. Writes
results/cuda_offline.json and cuda_offline.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import RESULTS, lines, save, save_table
from no_driver import NAME, Compiled, compile_piece, pretend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from freeloc_fx import Profile, transform
from freeloc_fx.compiler import backend, repeat
from freeloc_fx.graph.flex_calls import FLEX
from freeloc_fx.graph.splice import CapturedFunctions
from freeloc_fx.passes import cut_blocks

STRATEGIES = ("vrpr", "tsa", "vrpr+tsa", "vrpr+temp", "window", "anchors", "ultravico", "freelong+vrpr")
HEADS, DIM, HEIGHT, WIDTH, TRAINED = 12, 128, 60, 104, 21


def frames_of(times: int) -> int:
    """Latent frames of so many times the trained length's frames."""
    return (times * (4 * (TRAINED - 1) + 1) - 1) // 4 + 1


def layer(strategy: str, times: int, in_one: bool = False) -> dict[str, Any]:
    """Compile the pieces of one layer.

    Args:
        strategy: of the layer.
        times: of the trained length.
        in_one: compile all calls of the attention as one piece.
    """
    import diffusers

    model = diffusers.WanTransformer3DModel(  # type: ignore[no-untyped-call]
        num_attention_heads=HEADS, attention_head_dim=DIM, num_layers=1, ffn_dim=8960
    )
    model = model.to(torch.bfloat16).eval().requires_grad_(False)
    made: dict[Hashable, Compiled] = {}
    held: dict[int, int] = {}
    found: list[tuple[Compiled, int | None]] = []

    def compiled(self: Any, call: Any, inputs: list[Any]) -> Callable[..., Any]:
        module = call.make()
        results = FakeTensorProp(module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*inputs)
        attends = any(node.target is FLEX for node in module.graph.nodes)
        if call.compiled:
            key = (call.content, repeat._signature(inputs))
            if key not in made:
                made[key] = compile_piece(module, inputs)
            if attends:
                peak = made[key].peak_bytes()
                found.append((made[key], None if peak is None else sum(held.values()) + peak))
        for slot in call.free:
            held.pop(slot, None)
        if attends:
            held.update({slot: one.nbytes for slot, one in zip(call.outputs, results, strict=True)})
        blank = [torch.empty_strided(one.shape, one.stride(), dtype=one.dtype) for one in results]  # never written to
        return lambda *values: tuple(blank)

    frames = frames_of(times)
    patches = [
        mock.patch.object(repeat._Program, "_compiled", compiled),
        mock.patch.object(backend, "check_compiler", lambda *args: None),  # it looks for a GPU
    ]
    if in_one:
        patches.append(mock.patch.object(cut_blocks, "call_part", lambda node: None))
    for patch in patches:
        patch.start()
    try:
        with torch.no_grad():
            transform(model, Profile(trained_frames=TRAINED, layers=strategy), attention="flex")(
                hidden_states=torch.zeros(1, 16, frames, HEIGHT, WIDTH, dtype=torch.bfloat16),
                timestep=torch.tensor([500]),
                encoder_hidden_states=torch.zeros(1, 512, 4096, dtype=torch.bfloat16),
                return_dict=False,
            )
    finally:
        mock.patch.stopall()
    tokens = frames * HEIGHT * WIDTH // 4
    kernels = [kernel for one, _ in found for kernel in one.attention]
    peaks = [peak for _, peak in found if peak is not None]
    return {
        "what": f"{strategy}, {times}x" + (", all calls in one piece" if in_one else ""),
        "pieces": len(found),
        "different": len({id(one) for one, _ in found}),
        "registers": max(kernel.registers for kernel in kernels),
        "spilled": max(kernel.spilled for kernel in kernels),
        "shared": max(kernel.shared for kernel in kernels),
        "of q, k, v": max(peaks) / (3 * 2 * HEADS * DIM * tokens) if len(peaks) == len(found) else "",
        "kernels": [asdict(kernel) for kernel in {k.name: k for one in made.values() for k in one.kernels}.values()],
    }


def looked_up(times: int) -> dict[str, Any]:
    """Compile one call whose mask function looks pairs up: levels of frames, and a stripe's tokens."""
    frames = frames_of(times)
    frame = HEIGHT * WIDTH // 4
    tokens, blocks = frames * frame, math.ceil(frames * frame / 128)

    def call(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
        segment, place, levels, stripe = (values[name] for name in ("segment", "place", "levels", "stripe"))

        def visible(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
            level = levels[segment[i], segment[j]]
            return (level == 2) | ((level == 1) & stripe[place[i], place[j]])

        count, index = values["count"], values["index"]
        mask = BlockMask(
            seq_lengths=(tokens, tokens), kv_num_blocks=count, kv_indices=index, full_kv_num_blocks=count,
            full_kv_indices=index, q_num_blocks=None, q_indices=None, full_q_num_blocks=None, full_q_indices=None,
            BLOCK_SIZE=(128, 128), mask_mod=visible,
        )  # fmt: skip
        q = values["q"]
        out, aux = flex_attention(q, q, q, block_mask=mask, return_aux=AuxRequest(lse=True))
        assert aux.lse is not None
        return out * aux.lse.unsqueeze(-1)

    cpu = torch.device("cpu")
    likes = {
        "q": ((1, 4, tokens, DIM), torch.bfloat16, cpu),
        "segment": ((tokens,), torch.int32, cpu),
        "place": ((tokens,), torch.int32, cpu),
        "levels": ((frames, frames), torch.int8, cpu),
        "stripe": ((frame, frame), torch.bool, cpu),
        "count": ((1, 1, blocks), torch.int32, cpu),
        "index": ((1, 1, blocks, blocks), torch.int32, cpu),
    }
    captured = CapturedFunctions().get("looked up", call, likes)
    blank = [torch.empty(likes[name][0], dtype=likes[name][1], device="meta") for name in captured.inputs]
    kernels = compile_piece(captured.module, blank).attention
    return {
        "what": f"one call, pairs looked up in tables, {times}x",
        "registers": max(kernel.registers for kernel in kernels),
        "spilled": max(kernel.spilled for kernel in kernels),
        "shared": max(kernel.shared for kernel in kernels),
    }


HEAD = ("what", "pieces with FlexAttention", "of which different", "registers", "bytes spilled", "shared memory",
        "held at most, of q, k, v (by the block where it is one piece)")  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    names = ("what", "pieces", "different", "registers", "spilled", "shared", "of q, k, v")
    cells = [[row.get(name, "") for name in names] for row in rows]
    return f"Compiled for {NAME}; nothing ran.\n\n" + lines(
        HEAD, [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in cells]
    )


def add(rows: list[dict[str, Any]], row: dict[str, Any], folder: Path) -> None:
    """Keep a row, and write what there is."""
    rows.append(row)
    print({key: value for key, value in row.items() if key != "kernels"}, flush=True)
    save("cuda_offline", {"rows": rows}, folder)
    save_table("cuda_offline", table(rows), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument(
        "--times", default="4,10", help="of the trained length; the first for each strategy, the others for vrpr+tsa"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    if torch.version.cuda is None:
        parser.error(f"expected a CUDA build of torch, found {torch.__version__}; no GPU is needed")
    pretend()
    names, times = args.strategies.split(","), [int(one) for one in args.times.split(",")]
    wanted = [(name, times[0], False) for name in names] + [
        ("vrpr+tsa", n, False) for n in times[1:] if "vrpr+tsa" in names
    ]
    wanted += [(name, times[0], True) for name in ("vrpr", "vrpr+tsa") if name in names]
    rows: list[dict[str, Any]] = []
    for name, n, in_one in wanted:
        add(rows, layer(name, n, in_one), args.out)
    add(rows, looked_up(times[0]), args.out)


if __name__ == "__main__":
    main()
