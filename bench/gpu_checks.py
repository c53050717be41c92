"""What `bench/cuda.py` measures, measurement by measurement; also run by the tests, on CPU and small.

Each measurement is a function that gives one row. A row says what was measured, on which device, and in how long; one
that fails says why.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from freeloc_fx import Profile, transform
from freeloc_fx.attention import op
from freeloc_fx.evaluation.cost import make_spec, peak_bytes
from freeloc_fx.method.spec import AttentionSpec

__all__ = ["LIMITS", "STRATEGIES", "Measurement", "agreement", "attention", "device_name", "end_to_end", "model_step"]

STRATEGIES = (
    "direct+temp", "vrpr", "tsa", "vrpr+tsa", "vrpr+tsa+temp", "window", "anchors", "riflex", "pi", "ntk", "yarn+tsa",
    "clip", "group", "ultravico", "longdiff", "freelong", "freelong++", "freelong+vrpr", "squeeze+vrpr", "hold+tsa",
)  # fmt: skip
"""Every part of strategy names at least once."""
LIMITS = {"float32": 1e-5, "bfloat16": 2e-2}
"""How far a lowering may be from the reference, relative to its norm."""

Measurement = tuple[str, Callable[[], dict[str, Any]]]
"""What it is, and what makes its row."""


def device_name(device: torch.device) -> str:
    """The device's own name, which stands beside every figure."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU (a trial of the script, no figures)"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(run: Callable[[], Any], device: torch.device, runs: int) -> tuple[float, float]:
    """The first call, and the median of others after it."""
    times = []
    for _ in range(1 + runs):
        _wait(device)
        started = time.perf_counter()
        run()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - started))
    return times[0], statistics.median(times[1:])


def operands(spec: AttentionSpec, heads: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """q, k and v as models hold them: (batch, tokens, heads, head_dim) in memory."""
    torch.manual_seed(0)
    shape = (1, spec.grid.sequence, heads, spec.rope.head_dim)
    # Made where they are used: half a billion numbers at ten times the length take a CPU core ten seconds.
    return [torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for _ in range(3)]


# (a) and (e) Every lowering against the reference


def agreement(device: torch.device, tiny: bool) -> Iterator[Measurement]:
    """What everything else rests on, as few compilations as can be: VRPR and TSA, and both with joint text."""
    whole, half = torch.float32, torch.bfloat16
    few = [("vrpr+tsa", half, 0), ("vrpr+tsa", whole, 40), ("vrpr", half, 0), ("tsa", half, 0)]
    yield from _compared(device, few[:2] if tiny else few, ("flex", "calls"))


def every_agreement(device: torch.device, tiny: bool) -> Iterator[Measurement]:
    """All strategies, lowerings and dtypes, with joint text and without, on a small grid: minutes of compiling."""
    kinds = [
        (name, dtype, text)
        for name in (("freelong",) if tiny else STRATEGIES)
        for dtype in (torch.bfloat16, torch.float32)
        for text in ((0, 40) if name in ("vrpr", "vrpr+tsa", "squeeze+vrpr", "hold+tsa", "tsa") else (0,))
    ]
    yield from _compared(device, kinds, ("flex", "calls", "tiles"))


def _compared(
    device: torch.device, kinds: list[tuple[str, torch.dtype, int]], lowerings: tuple[str, ...]
) -> Iterator[Measurement]:
    for name, dtype, text in kinds:
        for lowering in lowerings:
            about = f"{lowering} - reference, {name}, {dtype}, {text} text tokens".replace("torch.", "")
            yield about, lambda n=name, d=dtype, t=text, w=lowering: _agreement(device, n, d, t, w)  # type: ignore[misc]


def _agreement(device: torch.device, name: str, dtype: torch.dtype, text: int, lowering: str) -> dict[str, Any]:
    spec = make_spec(name, 4, 5, 9, 64, text, trained=6)
    q, k, v = operands(spec, 2, dtype, device)
    with torch.no_grad():
        found = op.run(lowering, q, k, v, spec).double()
        expected = op.run("reference", *(x.double() for x in (q, k, v)), spec).double()
    error = float((found - expected).norm() / expected.norm())
    limit = LIMITS[str(dtype).removeprefix("torch.")]
    return {"strategy": name, "dtype": str(dtype), "text": text, "lowering": lowering, "error": error, "limit": limit,
            "holds": error <= limit}  # fmt: skip


# (b) Attention alone


def attention(device: torch.device, tiny: bool) -> Iterator[Measurement]:
    """Dense SDPA beside TSA, VRPR and both, at 832x480: milliseconds, share of the dense FLOP rate, peak memory."""
    dense: dict[int, float] = {}
    for times in (1, 2) if tiny else (1, 2, 4, 10):
        yield f"dense SDPA, {times}x", lambda n=times: _dense(device, n, tiny, dense)  # type: ignore[misc]
        for name in ("vrpr+tsa", "vrpr", "tsa") if times > 1 else ():
            yield f"flex, {name}, {times}x", lambda n=times, s=name: _sparse(device, s, n, tiny, dense)  # type: ignore[misc]


def _size(tiny: bool) -> tuple[int, int, int, int]:
    """Heads, head_dim, rows and columns of tokens."""
    return (2, 32, 2, 4) if tiny else (12, 128, 30, 52)


def _dense(device: torch.device, times: int, tiny: bool, dense: dict[int, float]) -> dict[str, Any]:
    heads, dim, height, width = _size(tiny)
    spec = make_spec("direct", times, height, width, dim)
    q, k, v = operands(spec, heads, torch.bfloat16, device)
    found: dict[str, float] = {}
    kinds = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    for kind in kinds if device.type == "cuda" else (SDPBackend.MATH,):
        try:
            with torch.no_grad(), sdpa_kernel(kind):
                _, found[kind.name] = milliseconds(lambda: F.scaled_dot_product_attention(q, k, v), device, 5)
        except RuntimeError:
            continue
    best = min(found, key=lambda name: found[name])
    dense[times] = found[best]
    flops = 4.0 * heads * dim * float(spec.grid.sequence) ** 2
    return {"tokens": spec.grid.sequence, "kernel": best, "milliseconds": found[best], "all": found,
            "TFLOP/s": flops / found[best] / 1e9}  # fmt: skip


def _sparse(device: torch.device, name: str, times: int, tiny: bool, dense: dict[int, float]) -> dict[str, Any]:
    heads, dim, height, width = _size(tiny)
    spec = make_spec(name, times, height, width, dim)
    q, k, v = operands(spec, heads, torch.bfloat16, device)

    def run() -> torch.Tensor:
        return op.run("flex", q, k, v, spec)

    with torch.no_grad():
        first, steady = milliseconds(run, device, 5)
        peak = peak_bytes(run, device)
    kept, base = spec.kept_pairs(), dense.get(times, math.nan)
    return {"tokens": spec.grid.sequence, "strategy": name, "first call, ms": first, "milliseconds": steady,
            "of dense": steady / base, "visible share": kept, "time / (visible share x dense)": steady / base / kept,
            "peak bytes": peak, "of q, k, v": peak / 3 / q.nbytes}  # fmt: skip


# (c) A denoising step of Wan 2.1 1.3B with random weights


def model_step(device: torch.device, tiny: bool) -> Iterator[Measurement]:
    """Direct (Inductor, dense) beside the shipped profile: first call and steady, peak memory."""
    holder: dict[str, Any] = {}
    # First what is transformed: blocks that "direct" has compiled are refused by `transform`, which shares them.
    for way in ("profile", "direct"):
        for frames in (9, 12) if tiny else (81, 201):
            yield f"Wan 1.3B, {frames} latent frames, {way}", lambda n=frames, w=way: _step(device, n, w, tiny, holder)  # type: ignore[misc]


def _model(device: torch.device, tiny: bool) -> Any:
    import diffusers

    cls: Any = diffusers.WanTransformer3DModel
    torch.manual_seed(0)
    small: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 24, "num_layers": 2, "ffn_dim": 64}
    size: dict[str, Any] = {"num_attention_heads": 12, "attention_head_dim": 128, "num_layers": 30, "ffn_dim": 8960}
    with device:
        return cls(**(small if tiny else size)).to(torch.bfloat16).eval().requires_grad_(False)


def _step(device: torch.device, frames: int, way: str, tiny: bool, holder: dict[str, Any]) -> dict[str, Any]:
    if "model" not in holder:
        holder["model"] = _model(device, tiny)
    model, backend = holder["model"], "aot_eager" if device.type == "cpu" else "inductor"
    profile = Profile.load("wan2.1-t2v-1.3b")
    if tiny:
        profile = Profile(trained_frames=5, layers="vrpr+tsa")
    height, width = (4, 6) if tiny else (60, 104)
    inputs = {
        "hidden_states": torch.randn(1, 16, frames, height, width, device=device, dtype=torch.bfloat16),
        "timestep": torch.tensor([500], device=device),
        "encoder_hidden_states": torch.randn(1, 8 if tiny else 512, 4096, device=device, dtype=torch.bfloat16),
        "return_dict": False,
    }
    # Both through the same compiler, block by block.
    if way == "profile":
        changed = transform(model, profile, backend=backend, attention="flex")
    else:
        changed = model
        if not holder.get("compiled"):
            model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend=backend)
            holder["compiled"] = True
    with torch.no_grad():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        first, steady = milliseconds(lambda: changed(**inputs), device, 1)
    row: dict[str, Any] = {"latent frames": frames, "way": way, "first call, ms": first, "milliseconds": steady}
    if device.type == "cuda":
        row["peak bytes, weights included"] = torch.cuda.max_memory_allocated(device)
    holder[f"{way}{frames}"] = steady
    if way == "direct" and f"profile{frames}" in holder:
        row["profile of direct"] = holder[f"profile{frames}"] / steady
    return row


# (d) tiny-wan end to end


def end_to_end(device: torch.device, tiny: bool) -> Iterator[Measurement]:
    """A short generation with the embedded model, as a user gets it."""
    for strategy in ("direct", "profile"):
        yield f"tiny-wan, {strategy}", lambda s=strategy: _generate(device, s, tiny)  # type: ignore[misc]


def _generate(device: torch.device, strategy: str, tiny: bool) -> dict[str, Any]:
    from freeloc_fx.generation.pipelines import apply, generate, load_pipeline

    pipe = load_pipeline("tiny-wan").to(device)
    if strategy != "direct":
        apply(pipe, strategy=strategy, backend="eager" if tiny else "inductor", attention="flex")
    frames, steps = (101, 1) if tiny else (321, 20)
    made = generate(pipe, "a red circle bounces over a navy grid", frames=frames, steps=steps, seed=0)
    return {"frames": frames, "steps": steps, "strategy": strategy, "seconds": made.seconds}
