"""Inductor and Triton as on an H100, on a machine without one: code down to the GPU's instructions, nothing that runs.

Triton needs no GPU to compile, only to be told of one, and Inductor asks torch.cuda about one. `pretend` answers for
it, by private names of torch 2.14 and Triton 3.8 and for the whole process, so it is for scripts only. It wants a CUDA
build of torch, which brings Triton and NVIDIA's assembler.
"""

from __future__ import annotations

import builtins
import re
import subprocess
import tempfile
import textwrap
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.fx as fx

__all__ = ["Compiled", "Kernel", "compile_piece", "pretend"]

ARCHITECTURE, NAME = (9, 0), "NVIDIA H100 (not there)"
_SHARED = 232448  # bytes of shared memory that a block may have

_PROPERTIES = types.SimpleNamespace(
    name=NAME, major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30, warp_size=32, gcnArchName="",
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, regs_per_multiprocessor=65536, uuid="0",
    shared_memory_per_block=49152, shared_memory_per_block_optin=_SHARED, shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20, clock_rate=1980000, memory_clock_rate=2619000, memory_bus_width=5120, is_integrated=False,
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """One compiled Triton kernel.

    Args:
        name: Inductor's, which says what is fused.
        registers: of a thread.
        spilled: bytes of a thread that do not fit into registers.
        shared: bytes of shared memory.
    """

    name: str
    registers: int
    spilled: int
    shared: int


@dataclass
class Compiled:
    """What one graph became.

    Args:
        kernels: as they were compiled, one for each configuration that Inductor would choose from.
        sources: Inductor's wrapper code.
        run: what a GPU would call; without one it runs nowhere but in `interpreter.py`.
    """

    kernels: list[Kernel] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    run: Callable[..., Any] | None = None

    @property
    def attention(self) -> list[Kernel]:
        """Those of FlexAttention."""
        return [kernel for kernel in self.kernels if "flex_attention" in kernel.name]

    def peak_bytes(self) -> int | None:
        """The most bytes that the wrapper code holds at once beside its arguments, what it returns included; None where
        it calls FFTs, whose results are not among its buffers."""
        if any("_fft_" in source.partition("def call(")[2] for source in self.sources):
            return None
        return max(map(_peak, self.sources), default=0)


_current = Compiled()


def pretend() -> None:
    """Answer for an H100 from here on."""
    import torch._dynamo.device_interface as devices
    import torch._inductor.config as config
    import torch._inductor.fx_passes.joint_graph as joint_graph
    import torch._inductor.graph as inductor_graph
    import torch._inductor.runtime.triton_helpers as helpers
    import torch._inductor.runtime.triton_heuristics as heuristics
    import torch._subclasses.fake_tensor as fake_tensor
    import triton

    answers = {
        "device_count": 1, "current_device": 0, "set_device": None, "synchronize": None,
        "get_device_properties": _PROPERTIES, "get_device_capability": ARCHITECTURE, "get_device_name": NAME,
        "is_bf16_supported": True, "mem_get_info": (70 * 2**30, 80 * 2**30), "set_rng_state": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8), "_exchange_device": 0, "_maybe_exchange_device": 0,
        "_lazy_init": None, "get_compute_capability": 90, "get_raw_stream": 0, "exchange_device": 0,
        "maybe_exchange_device": 0, "is_triton_capable": True, "raise_if_triton_unavailable": None,
    }  # fmt: skip
    for name, value in answers.items():
        for owner in (torch.cuda, devices.CudaInterface, devices.CudaInterface.Worker):
            if hasattr(owner, name):
                setattr(owner, name, staticmethod(_always(value)) if isinstance(owner, type) else _always(value))
    for name in ("getDevice", "exchangeDevice", "maybeExchangeDevice", "setDevice", "getCurrentRawStream"):
        setattr(torch._C, f"_cuda_{name}", _always(0))
    fake_tensor.init_gpu_context = _always(None)
    joint_graph.lazy_init = _always(None)  # its patterns are made by running things
    helpers.set_driver_to_gpu = _always(None)
    config.compile_threads, config.fx_graph_cache, config.joint_graph_constant_folding = 1, False, False
    config.use_static_triton_launcher = False
    triton.runtime.driver.set_active(_Driver())

    def precompile(self: Any, *args: Any, **kwargs: Any) -> None:
        for choice in self.configs:
            made = self._precompile_config(choice).kernel
            registers, spilled = _resources(made.asm["cubin"])
            _current.kernels.append(Kernel(self.fn.__name__, registers, spilled, made.metadata.shared))
        self.launchers = [_always(None)]

    heuristics.CachingAutotuner.precompile = precompile
    lowered = inductor_graph.GraphLowering._compile_to_module_lines

    def keep(self: Any, code: Any) -> Any:
        _current.sources.append(code.value)
        return lowered(self, code)

    inductor_graph.GraphLowering._compile_to_module_lines = keep


def _always(value: Any) -> Any:
    return lambda *args, **kwargs: value


class _Driver:
    """What Triton asks of a driver when it compiles."""

    class utils:
        get_device_properties = staticmethod(_always({"max_shared_mem": _SHARED, "multiprocessor_count": 132}))

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    get_current_device = get_current_stream = _always(0)
    get_active_torch_device = _always(torch.device("cuda:0"))
    is_active = _always(True)


def _resources(cubin: bytes) -> tuple[int, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage: expected REG and STACK, found {said[-300:]!r}")
    return int(found[1]), int(found[2])


def compile_piece(module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
    """Compile a graph that was captured on CPU as if it were on the GPU.

    Args:
        module: changed: its devices are the GPU.
        inputs: its inputs, of which shapes, strides and dtypes count.

    Returns:
        Kernels and wrapper code.
    """
    global _current
    import torch._dynamo.device_interface as devices
    from torch._inductor.compile_fx import compile_fx
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv
    from torch.utils._triton import has_triton

    gpu = torch.device("cuda:0")
    for part in module.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                moved = fx.node.map_aggregate(
                    (node.args, dict(node.kwargs)), lambda one: gpu if isinstance(one, torch.device) else one
                )
                node.args, node.kwargs = moved  # type: ignore[misc]
                node.meta.pop("example_value", None)
            part.recompile()
    _current = Compiled()
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()) as mode:
        made = [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=gpu) if isinstance(x, torch.Tensor) else x
            for x in inputs
        ]
    # Capturing, which goes on meanwhile, is not to look for a GPU.
    with (
        mock.patch.object(torch.cuda, "is_available", _always(True)),
        mock.patch.object(devices.CudaInterface, "is_available", _always(True)),
        torch.no_grad(),
        torch._guards.tracing(torch._guards.TracingContext(mode)),
    ):
        has_triton.cache_clear()
        _current.run = compile_fx(module, made)
    return _current


def _peak(source: str) -> int:
    """Run the wrapper's `call` with buffers that only count."""
    body = source[source.index("    def call(self, args):") :]
    body = textwrap.dedent(body[: body.index("\nrunner = ")]).replace("with torch.cuda._DeviceGuard(0):", "if True:")
    live = peak = 0

    def freed(size: int) -> None:
        nonlocal live
        live -= size

    def allocate(shape: Sequence[int], stride: Sequence[int], dtype: torch.dtype) -> Any:
        nonlocal live, peak
        size = torch.empty((), dtype=dtype).element_size() * (1 + sum((s - 1) * t for s, t in zip(shape, stride)))  # noqa: B905
        live += size
        peak = max(peak, live)
        made = _Buffer()
        weakref.finalize(made, freed, size)
        return made

    class Names(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return getattr(builtins, name, _Nothing())

    dtypes = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
    known = Names(
        empty_strided_cuda=allocate,
        reinterpret_tensor=lambda base, *args: _Buffer(base),
        copy_if_misaligned=lambda x: x,
        torch=types.SimpleNamespace(**dtypes, cuda=_Nothing(), ops=_Nothing()),
    )
    exec(compile(body, "wrapper", "exec"), known)
    count = len(re.findall(r"\w+", re.search(r"([^\n]*) = args\n", body)[1]))  # type: ignore[index]
    result = known["call"](None, [_Buffer() for _ in range(count)])
    del result
    return peak


class _Buffer:
    """An allocation, or a view of one, which keeps it."""

    def __init__(self, base: Any = None) -> None:
        self.base = base


class _Nothing:
    """Stands for a kernel: whatever is read off it or called of it is nothing."""

    def __getattr__(self, name: str) -> _Nothing:
        return _Nothing()

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None
