"""Triton's interpreter as the GPU that is not there: the kernels that Inductor writes for one, run on CPU.

`pretend` is that of `no_driver`, but nothing is compiled to instructions: Triton runs each kernel's source with NumPy,
program by program, and the wrapper code around them allocates on CPU. So it is the code's arithmetic that is seen, not
the processor's: no races, no tensor cores, no speed. Triton 3.8's interpreter lacks two things that are given to it
here: libdevice, and products of bfloat16, which it would take of the numbers' bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # read wherever Triton decorates a function, first of all in its own modules

import no_driver
import numpy as np
import torch.fx as fx

__all__ = ["interpreted", "pretend"]

ON_GPU = {
    "with torch.cuda._DeviceGuard(0):": "if True:",
    "torch._C._dynamo.guards._empty_strided_cuda": "torch._C._dynamo.guards._empty_strided_cpu",
}
"""What wrapper code says of a GPU -> what it says here."""


def pretend() -> None:
    """Answer for an H100 from here on, and run its kernels on CPU.

    Raises:
        RuntimeError: Triton was imported before this module.
    """
    import torch._inductor.graph as inductor_graph
    import torch._inductor.runtime.triton_helpers as helpers
    import torch._inductor.runtime.triton_heuristics as heuristics
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(helpers.maximum, InterpretedFunction):
        raise RuntimeError("expected to be imported before Triton, which decides at its import what interprets")
    no_driver.pretend()
    helpers.libdevice = _Libdevice()
    _multiply_bfloat16()

    def precompile(self: Any, *args: Any, **kwargs: Any) -> None:
        self.launchers = [None]  # `run` interprets the first configuration and never asks

    heuristics.CachingAutotuner.precompile = precompile
    lowered = inductor_graph.GraphLowering._compile_to_module_lines

    def on_cpu(self: Any, code: Any) -> Any:
        for there, here in ON_GPU.items():
            if there not in code.value:
                raise RuntimeError(f"Inductor's wrapper code: expected {there!r}, found none")
            code.value = code.value.replace(there, here)
        return lowered(self, code)

    inductor_graph.GraphLowering._compile_to_module_lines = on_cpu


def interpreted(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """A backend of torch.compile, for graphs captured on CPU.

    Args:
        module: changed: its devices are the GPU.
        inputs: not looked at: it is compiled at the first call, when Dynamo has finished.

    Returns:
        What takes and gives tensors on CPU.
    """
    made: list[Callable[..., Any]] = []

    def run(*values: Any) -> Any:
        if not made:
            compiled = no_driver.compile_piece(module, values).run
            assert compiled is not None
            made.append(compiled)
        return made[0](*values)

    return run


_NUMPY = {"rsqrt": lambda x: 1 / np.sqrt(x), "pow": np.power, "nearbyint": np.rint}


class _Libdevice:
    """NVIDIA's library of functions, by NumPy's names for them or those of `_NUMPY`."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = _NUMPY.get(name) or getattr(np, name, None)
        if function is None:
            raise NotImplementedError(f"libdevice.{name}: expected one that NumPy has")
        return _by_element(function)


def _by_element(function: Callable[..., Any]) -> Callable[..., Any]:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def run(*args: Any) -> Any:
        data = function(*(one.handle.data if isinstance(one, tl.tensor) else one for one in args))
        like = max((one for one in args if isinstance(one, tl.tensor)), key=lambda one: one.handle.data.size)
        if like.dtype not in (tl.float32, tl.float64):
            raise NotImplementedError(f"libdevice of {like.dtype}: expected float32 or float64")
        kind = tl.int1 if data.dtype == np.bool_ else like.dtype
        data = np.asarray(data, dtype=np.bool_ if kind == tl.int1 else like.handle.data.dtype)
        shape = tl.block_type(kind, list(data.shape)) if like.type.is_block() else kind
        return tl.tensor(TensorHandle(data, kind), shape)

    return run


def _multiply_bfloat16() -> None:
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    before = InterpreterBuilder.create_dot

    def widened(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *args: Any) -> Any:
        return before(self, widened(a), widened(b), *args)

    InterpreterBuilder.create_dot = create_dot
