"""How much memory does one denoising step take beside the weights, by length and resolution? Measured, and counted.

    python bench/step_memory.py                                    # a small Wan in bfloat16 on CPU
    python bench/step_memory.py --sizes 8x8 --extensions 4 --compiled ""

Peak of the bytes that torch's allocator had handed out at once during a forward pass, on the second call, when masks
and tables are there; on CPU, where torch's own dense attention holds no scores either. Beside it what
`freeloc_fx.evaluation.sharing.rank_memory` counts for the same sizes, which is what the tables of larger models are
made of: a block's input, its normed copy, q, k, v and the result, or the inner activation of the feed-forward, twice.
What was measured over what was counted says by how much those tables are too low. Compiled: by Inductor, which fuses
what the eager model materialises, copies in float32 above all. Writes results/step_memory.json and step_memory.md.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from common import lines, save, save_table
from denoising_step import make_inputs

from freeloc_fx import Profile, plan, transform
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.evaluation.cost import peak_bytes
from freeloc_fx.evaluation.sharing import rank_memory

HEADS, DIM, INNER, LAYERS, TRAINED = 4, 64, 700, 2, 5
"""Of the model: Wan 14B's ratio of the feed-forward's inner channels to its width."""


def make_model() -> Any:
    """A small Wan in bfloat16, but for what Wan keeps in float32."""
    import diffusers

    torch.manual_seed(0)
    cls: Any = diffusers.WanTransformer3DModel
    model = cls(
        patch_size=(1, 2, 2), num_attention_heads=HEADS, attention_head_dim=DIM, in_channels=16, out_channels=16,
        text_dim=64, freq_dim=64, ffn_dim=INNER, num_layers=LAYERS, rope_max_seq_len=128,
    )  # fmt: skip
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def measure(size: str, extension: int, way: str) -> dict[str, Any]:
    """The peak of one way of running the model at one length and picture."""
    height, width = (int(n) for n in size.split("x"))
    frames = extension * (TRAINED - 1) + 1
    model, inputs = make_model(), make_inputs(frames, height, width)
    inputs = {
        k: v.bfloat16() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()
    }
    strategy, _, backend = way.partition(", ")
    profile = Profile(trained_frames=TRAINED, layers=strategy if strategy != "direct" else "vrpr+tsa")
    made = plan(model, profile, frames=frames, height=2 * height, width=2 * width)
    held = rank_memory(made, model, layer_table(model), 1)
    run = model
    if strategy != "direct":
        run = transform(model, profile, backend=backend, attention="tiles")
    with torch.no_grad():
        run(**inputs)
        peak = peak_bytes(lambda: run(**inputs))
    return {
        "size": size,
        "extension": extension,
        "tokens": frames * height * width,
        "way": way,
        "peak": peak,
        "counted": max(held.attention, held.feed_forward),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="8x8,12x20", help="tokens of a frame, height x width")
    parser.add_argument("--extensions", default="1,4,10", help="times the trained length")
    parser.add_argument("--ways", default="direct, eager;vrpr+tsa, eager", help="strategy, backend; several with ;")
    parser.add_argument("--compiled", default="8x8:4,8x8:10,12x20:4", help="size:extension of runs by Inductor")
    args = parser.parse_args()
    cases = [
        (size, int(extension), way)
        for size in args.sizes.split(",")
        for extension in args.extensions.split(",")
        for way in args.ways.split(";")
    ]
    for case in filter(None, args.compiled.split(",")):
        size, _, extension = case.partition(":")
        cases.append((size, int(extension), "vrpr+tsa, inductor"))
    rows = []
    for case in cases:
        torch._dynamo.reset()
        row = measure(*case)
        rows.append(row)
        of = row["peak"] / row["counted"]
        print(f"{row['size']} x{row['extension']:<3} {row['way']:20} {row['peak'] / 1e6:8.1f} MB, {of:.2f} of counted")
        save("step_memory", {"rows": rows})
    table = [
        [r["size"], f"{r['extension']}x", str(r["tokens"]), r["way"], f"{r['peak']}", f"{r['counted']}"] for r in rows
    ]
    save_table("step_memory", lines(["tokens a frame", "length", "tokens", "way", "bytes at most", "counted"], table))


if __name__ == "__main__":
    main()
