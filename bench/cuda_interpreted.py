"""Does the code that a GPU would be given compute the attention? FlexAttention's Triton kernels, interpreted on CPU.

    python bench/cuda_interpreted.py                                   # wants a CUDA build of torch 2.14, no GPU
    python bench/cuda_interpreted.py --strategies vrpr+tsa --dtypes float32 --models ""

Inductor writes kernels as for an H100 (`cuda_offline.py` compiles them), and Triton's interpreter runs them with NumPy:
every strategy of `gpu_checks.STRATEGIES` as `attention="flex"` makes its calls, alone on random q, k and v of 945
tokens and with padded text after them, and whole models, one rewritten piece after the other. Each is compared with the
literal reference, and so is the same attention by dense SDPA, so that one sees what a fault would look like. This is
the code's arithmetic, not a GPU's: races, tensor cores and speed are for `bench/cuda.py`. Writes
results/cuda_interpreted.json and cuda_interpreted.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from interpreter import interpreted, pretend  # before whatever imports Triton

# isort: split
import torch
from common import RESULTS, lines, save, save_table
from gpu_checks import LIMITS, STRATEGIES, Measurement, operands
from no_driver import NAME

from freeloc_fx import Profile, transform
from freeloc_fx.attention import op
from freeloc_fx.attention.flex.alone import flex
from freeloc_fx.compiler import backend, repeat
from freeloc_fx.evaluation.cost import make_spec

WITH_TEXT = ("vrpr", "tsa", "vrpr+tsa", "squeeze+vrpr", "hold+tsa")
MODELS = ("Wan", "HunyuanVideo")
TRAINED, FRAMES, SIZE, DIM, TEXT, PADDING = 6, 21, (5, 9), 64, 40, 13
SHARP = 1.5
"""Factor on q and k: what is random attends to everything alike, and no error of a position would show."""


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def alone(name: str, dtype: torch.dtype, text: int) -> dict[str, Any]:
    """One attention.

    Args:
        name: of the strategy.
        dtype: of q, k and v.
        text: tokens after the video, the last `PADDING` of them hidden by a mask.
    """
    spec = make_spec(name, 4, *SIZE, DIM, text, trained=TRAINED)
    q, k, v = operands(spec, 2, dtype, torch.device("cpu"))
    q, k = SHARP * q, SHARP * k
    mask = None
    if text:
        mask = torch.ones(1, 1, 1, spec.grid.sequence, dtype=torch.bool)
        mask[..., -PADDING:] = False
    exact = [x.double() for x in (q, k, v)]
    calls: list[Any] = []

    def compiler(module: Any, inputs: Any) -> Callable[..., Any]:
        calls.append(module)
        return interpreted(module, inputs)

    with torch.no_grad():
        expected = op.run("reference", *exact, spec, key_mask=mask)
        dense = torch.nn.functional.scaled_dot_product_attention(*exact, attn_mask=mask)
        found = flex(q, k, v, spec, key_mask=mask, backend=compiler)  # type: ignore[arg-type]
    return {"error": distance(found, expected), "limit": LIMITS[str(dtype).removeprefix("torch.")],
            "dense": distance(dense, expected), "pieces": len(calls)}  # fmt: skip


def model(name: str, strategy: str) -> dict[str, Any]:
    """One model with every compiled piece interpreted, float32.

    Args:
        name: of `MODELS`.
        strategy: of all its layers.
    """
    made, inputs = _built(name)
    pieces: dict[Any, Callable[..., Any]] = {}

    def compiled(self: Any, call: Any, values: list[Any]) -> Callable[..., Any]:
        if not call.compiled:
            return normal(self, call, values)
        key = (call.content, repeat._signature(values))
        if key not in pieces:
            pieces[key] = interpreted(call.make(), values)
        return pieces[key]

    normal = repeat._Program._compiled
    profile = Profile(trained_frames=TRAINED, layers=strategy)
    with torch.no_grad():
        expected = transform(made, profile, backend="eager", attention="reference")(**inputs)[0]
        with (
            mock.patch.object(repeat._Program, "_compiled", compiled),
            mock.patch.object(backend, "check_compiler", lambda *args: None),  # it looks for a GPU
        ):
            found = transform(made, profile, attention="flex")(**inputs)[0]
        untouched = made(**inputs)[0]
    return {"error": distance(found, expected), "limit": LIMITS["float32"], "dense": distance(untouched, expected),
            "pieces": len(pieces)}  # fmt: skip


def _built(name: str) -> tuple[Any, dict[str, Any]]:
    import diffusers

    cls: Any
    random = torch.Generator().manual_seed(0)
    height, width = SIZE

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    if name == "Wan":
        cls = diffusers.WanTransformer3DModel
        made = cls(
            num_attention_heads=2, attention_head_dim=DIM, num_layers=2, ffn_dim=64, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=16,
        )  # fmt: skip
        inputs = {"hidden_states": noise(1, 4, FRAMES, 2 * height, 2 * width), "timestep": torch.tensor([500]),
                  "encoder_hidden_states": noise(1, 7, 16)}  # fmt: skip
    else:
        cls = diffusers.HunyuanVideoTransformer3DModel
        made = cls(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=DIM, num_layers=1,
            num_single_layers=1, num_refiner_layers=1, patch_size=1, text_embed_dim=16, pooled_projection_dim=8,
            rope_axes_dim=(16, 24, 24),
        )  # fmt: skip
        shown = torch.ones(1, TEXT, dtype=torch.bool)
        shown[:, -PADDING:] = False
        inputs = {"hidden_states": noise(1, 4, FRAMES, height, width), "timestep": torch.tensor([500]),
                  "encoder_hidden_states": noise(1, TEXT, 16), "encoder_attention_mask": shown,
                  "pooled_projections": noise(1, 8), "guidance": torch.tensor([6000.0])}  # fmt: skip
    for weight in made.parameters():
        weight.data.normal_(0, 0.2, generator=random)
    for part, module in made.named_modules():
        if part.rpartition(".")[2] in ("norm_q", "norm_k"):
            module.weight.data.fill_(SHARP)
    return made.eval().requires_grad_(False), {**inputs, "return_dict": False}


def checks(strategies: list[str], dtypes: list[torch.dtype], models: list[str]) -> Iterator[tuple[str, Measurement]]:
    """Whole models, then every strategy alone: the kind of each check, and the check."""
    for name in models:
        strategy = "vrpr+tsa" if name == "Wan" else "squeeze+vrpr+tsa"
        about = f"{name}, {strategy}, float32"
        yield "whole models, float32", (about, lambda n=name, s=strategy: model(n, s))  # type: ignore[misc]
    for dtype in dtypes:
        for name in strategies:
            for text in (0, TEXT) if name in WITH_TEXT else (0,):
                kind = f"{dtype}".removeprefix("torch.") + (", padded text" if text else "")
                check = (f"{name}, {kind}", lambda n=name, d=dtype, t=text: alone(n, d, t))  # type: ignore[misc]
                yield f"one attention, {kind}", check


def _badness(error: float) -> float:
    return math.inf if math.isnan(error) else error


def table(rows: list[dict[str, Any]]) -> str:
    """A summary by kind, and every check."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["kind"], []).append(row)
    short = [
        [name, str(len(group)), f"{max((r['error'] for r in group), key=_badness):.1e}", f"{group[0]['limit']:.0e}",
         f"{min(r['dense'] for r in group):.2f}"]
        for name, group in groups.items()
    ]  # fmt: skip
    cells = [[row["what"], f"{row['error']:.1e}", f"{row['limit']:.0e}", f"{row['dense']:.1e}", str(row["pieces"])]
             for row in rows]  # fmt: skip
    return "\n\n".join([
        f"Written for {NAME}, interpreted on CPU.",
        lines(("checks", "how many", "largest relative error", "at most", "dense SDPA's, at least"), short),
        lines(("what", "relative error", "at most", "dense SDPA's instead", "compiled pieces"), cells),
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    args = parser.parse_args()
    if torch.version.cuda is None:
        parser.error(f"expected a CUDA build of torch, found {torch.__version__}; no GPU is needed")
    pretend()
    strategies, dtypes, models = (one.split(",") if one else [] for one in (args.strategies, args.dtypes, args.models))
    rows: list[dict[str, Any]] = []
    for kind, (what, measure) in checks(strategies, [getattr(torch, one) for one in dtypes], models):
        rows.append({"kind": kind, "what": what, **measure()})
        print(rows[-1], flush=True)
        save("cuda_interpreted", {"rows": rows}, args.out)
        save_table("cuda_interpreted", table(rows), args.out)
    if wrong := [row["what"] for row in rows if not row["error"] <= row["limit"]]:
        raise SystemExit(f"not as the reference: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
