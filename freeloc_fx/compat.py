"""What keeps other versions working: private names of torch.

Names of torch that are not part of its documented interface are used here, those of diffusers and accelerate in
`compat_diffusers`; elsewhere only a module's own tables (`_parameters`, `_forward_hooks`) and `torch.utils._pytree`.
Each says in which version it was seen, and what if it is missing. `tests/test_compat.py` looks at each of them.
"""

from __future__ import annotations

import inspect
import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
import torch.fx as fx
from torch import nn

# torch: what Dynamo raises. Seen in 2.13.0. Looked up when first asked for, since Dynamo takes a second to import.
_ERRORS: Mapping[str, tuple[str, ...]] = {
    "BACKEND_FAILED": ("BackendCompilerFailed",),
    "NO_SINGLE_GRAPH": ("Unsupported", "UserError", "TorchRuntimeError"),
    "CANNOT_STAMP": ("InternalTorchDynamoError", "UncapturedHigherOrderOpError"),
}


def dynamo_errors(kind: str) -> tuple[type[Exception], ...]:
    """Exceptions of Dynamo, for an `except`.

    Args:
        kind: "BACKEND_FAILED": what wraps an error that a backend raised. "NO_SINGLE_GRAPH": what is raised where a
            function cannot be captured whole. "CANNOT_STAMP": what is raised, beside those, where a region cannot be
            traced once.

    Returns:
        The classes, those that this version of torch has.
    """
    import torch._dynamo.exc as errors

    return tuple(getattr(errors, name) for name in _ERRORS[kind] if hasattr(errors, name))


@contextmanager
def dynamo_settings(**settings: Any) -> Iterator[None]:
    """Context: Dynamo's settings of these names have these values, and weights are inputs of what is captured.

    With Inductor's `freezing` they would be constants, of which no position table can be told. Seen in torch 2.13.0.

    Args:
        **settings: those that this version of torch does not have are left out. A set joins what is there.
    """
    from torch._dynamo import config
    from torch._inductor import config as inductor

    known = {n: v | getattr(config, n) if isinstance(v, set) else v for n, v in settings.items() if hasattr(config, n)}
    with config.patch(**known), inductor.patch(freezing=False), _quiet_metrics():
        yield


@contextmanager
def _quiet_metrics() -> Iterator[None]:
    """Context: torch 2.11 does not log at each capture that its metrics cannot hold settings that are functions."""
    logger = logging.getLogger("torch._dynamo.metrics_context")

    def tells(record: logging.LogRecord) -> bool:
        return release("torch") >= (2, 13) or "logging compilation metrics" not in record.getMessage()

    logger.addFilter(tells)
    try:
        yield
    finally:
        logger.removeFilter(tells)


def dynamo_switched_off(*, entirely: bool = False) -> str:
    """What keeps torch.compile from compiling here and now, by the name of the switch; empty for nothing.

    Seen in torch 2.13.0 (`torch._dynamo.config.disable`, `torch._dynamo.eval_frame._stance`, and modes such as
    `torch.utils.flop_counter.FlopCounterMode`: a call under one captures nothing, and Dynamo then leaves alone what it
    met there for as long as the process lives).

    Args:
        entirely: leave out what still runs that which was compiled before.
    """
    from torch._dynamo import config, eval_frame
    from torch.utils import _python_dispatch

    if getattr(config, "disable", False):
        return "TORCHDYNAMO_DISABLE or TORCH_COMPILE_DISABLE (torch._dynamo.config.disable)"
    stance = getattr(getattr(eval_frame, "_stance", None), "stance", "default")
    if stance == "force_eager" or (stance == "eager_on_recompile" and not entirely):
        return f"torch.compiler.set_stance({stance!r})"
    if torch.jit.is_tracing():
        return "torch.jit.trace"
    if torch.compiler.is_exporting():
        return "torch.export"
    for mode in _python_dispatch._get_current_dispatch_mode_stack():
        if not mode.is_infra_mode() and not mode.ignore_compile_internals():
            return f"{type(mode).__name__}, a TorchDispatchMode,"
    return ""


# torch: modes that change functions. Seen in 2.13.0.


def function_modes() -> list[str]:
    """Class names of the `TorchFunctionMode`s that are on, but for torch's own default device; empty where a version of
    torch does not tell."""
    stack = getattr(torch.overrides, "_get_current_function_mode_stack", list)
    return [type(mode).__name__ for mode in stack() if type(mode).__module__ != "torch.utils._device"]


# torch: FlexAttention. Seen in 2.13.0.


@contextmanager
def flex_as_it_is() -> Iterator[None]:
    """Context: `flex_attention` outside of a compiler runs its operator directly, not by way of Dynamo, and warns no
    more that it holds all scores. Where a version of torch lacks the switch it goes by way of Dynamo."""
    from torch.nn.attention import flex_attention as module

    if not hasattr(module, _flex_switch.name):
        yield
        return
    _flex_switch.turn_on(module)
    try:
        yield
    finally:
        _flex_switch.turn_off(module)


class _Switch:
    """A switch of torch's that holds for the whole process: on while any thread needs it, then as it was."""

    def __init__(self, name: str) -> None:
        self.name, self.users, self.before, self.lock = name, 0, None, threading.Lock()

    def turn_on(self, module: ModuleType) -> None:
        with self.lock:
            if not self.users:
                self.before = getattr(module, self.name)
                setattr(module, self.name, True)
            self.users += 1

    def turn_off(self, module: ModuleType) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                setattr(module, self.name, self.before)


_flex_switch = _Switch("_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG")


# torch: compilers. Seen in 2.13.0.


def backend_names(*, all_of_them: bool = False) -> list[str]:
    """Names that torch.compile takes as a backend; without those for debugging unless all are wanted."""
    return list(torch.compiler.list_backends(exclude_tags=()) if all_of_them else torch.compiler.list_backends())


def torch_compiler(name: Any, mode: str | None, options: Mapping[str, Any] | None) -> Callable[..., Any]:
    """What torch.compile would hand a captured graph to: a callable (graph module, inputs) -> callable.

    Args:
        name: of a backend, or a callable that takes options.
        mode: as torch.compile's.
        options: as torch.compile's.
    """
    how = (mode, None if options is None else dict(options), False)
    found: Callable[..., Any] = (
        torch._TorchCompileInductorWrapper(*how) if name == "inductor" else torch._TorchCompileWrapper(name, *how)
    )
    return found


def is_inductor(compiler: Any) -> bool:
    """Whether a compiler is `torch_compiler("inductor", ...)`."""
    return isinstance(compiler, torch._TorchCompileInductorWrapper)


def uses_cuda_graphs(compiler: Any) -> bool:
    """Whether a compiler records CUDA graphs, which want fixed addresses of the weights.

    Args:
        compiler: `torch_compiler("inductor", ...)`, which does by its mode, its options or Inductor's own setting; or
            torch's backend "cudagraphs".
    """
    if is_inductor(compiler):
        from torch._inductor import config

        return bool(compiler.config.get("triton.cudagraphs", config.triton.cudagraphs))
    return "cudagraphs" in (getattr(compiler, "compiler_name", ""), getattr(compiler, "__name__", ""))


def opaque_operator(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`torch.library.custom_op` of an operator that reads tables on the host, so that no CUDA graph may hold it.

    Inductor cuts its CUDA graphs around it, and the backend "cudagraphs" records none of a graph that has it. Seen in
    torch 2.13.0; a version whose operators take no tags records it as any other.

    Args:
        name: with its namespace.

    Returns:
        A decorator.
    """
    known = "tags" in inspect.signature(torch.library.custom_op).parameters
    tag = getattr(torch.Tag, "cudagraph_unsafe", None)
    tags: dict[str, Any] = {"tags": (tag,)} if known and tag is not None else {}
    return torch.library.custom_op(name, mutates_args=(), **tags)


# torch: modules. Seen in 2.13.0 (`nn.Module.compile` writes the first, `nn.Module.__call__` runs the second).

COMPILED_CALL = "_compiled_call_impl"
"""Attribute of a module that `nn.Module.compile` was called on: what its calls run; None or absent for others."""


def compiled_call(module: nn.Module) -> Callable[..., Any] | None:
    """What a compiled module's calls run; None for a module that is not compiled."""
    found: Callable[..., Any] | None = getattr(module, COMPILED_CALL, None)
    return found


def plain_call(module: nn.Module) -> Callable[..., Any]:
    """A module's call with its hooks, whether it is compiled or not."""
    found: Callable[..., Any] = module._call_impl
    return found


def unwrapped(model: Any) -> Any:
    """The module inside `torch.compile(module)`, which is a module of another class; others as they are."""
    return getattr(model, "_orig_mod", model)


def is_compiled_function(function: Any) -> bool:
    """Whether a function is what `torch.compile(function)` gave. Seen in 2.13.0 (`_torchdynamo_orig_callable`)."""
    return hasattr(function, "_torchdynamo_orig_callable")


def own_hooks(module: nn.Module) -> list[str]:
    """Names of the attributes that hold a module's own hooks, those that it has."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [name for name in names if name in vars(module)]


def torch_library() -> str:
    """The file of torch's own extension module, which links to the OpenMP that torch runs on. Seen in 2.13.0."""
    return str(torch._C.__file__)


def storage_id(tensor: torch.Tensor) -> int:
    """Equal for plain tensors that share memory."""
    return int(tensor.untyped_storage()._cdata)


# torch: what Dynamo writes on the nodes of a captured graph. Seen in 2.13.0.


def example_value(node: fx.Node) -> Any:
    """The fake value of a node, or a number; None where there is none."""
    return node.meta.get("example_value", node.meta.get("val"))


def set_example_value(node: fx.Node, value: Any) -> None:
    """Say what a node gives: a fake tensor, or one of its shape and dtype."""
    node.meta["example_value"] = value


STACK = "nn_module_stack"
"""Meta key of the modules that a node came from."""


def module_stack(node: fx.Node) -> dict[str, Any]:
    """The modules that a node came from, outermost first: key -> (path as Dynamo spells it, class)."""
    return node.meta.get(STACK) or {}


def stacked_module(key: str) -> int | None:
    """`id` of the module that a key of `module_stack` stands for; None where the key does not say.

    The key ends in "@1" where a module is called a second time.
    """
    number = key.partition("@")[0]
    return int(number) if number.isdecimal() else None


def source_name(node: fx.Node) -> str | None:
    """Where a placeholder's value comes from, as Dynamo spells it; None where it does not say."""
    source = getattr(node, "_dynamo_source", None)
    if source is None:
        return None
    name = source.name
    return str(name() if callable(name) else name)  # a method until torch 2.9


def copy_source(old: fx.Node, new: fx.Node) -> None:
    """Let a copied placeholder keep what Dynamo wrote on it: without it compiling fails with KeyError 'grapharg'."""
    if hasattr(old, "_dynamo_source"):
        new._dynamo_source = old._dynamo_source  # type: ignore[attr-defined]


def give_source(node: fx.Node, value: torch.Tensor) -> None:
    """Let compilers take an added placeholder for one of Dynamo's: those without a source fail as copied ones do.

    Args:
        node: the placeholder.
        value: looks like what it will be given; only its shape and dtype are kept.
    """
    from torch._dynamo.source import ConstantSource

    node.meta["example_value"] = value.new_empty(()).expand(value.shape)

    node._dynamo_source = ConstantSource(source_name=node.name)  # type: ignore[attr-defined]


def assert_on_device(condition: torch.Tensor, message: str) -> None:
    """Fail, now or where the device gets there, unless a bool tensor without axes is true. A compiler can trace it."""
    torch._assert_async(condition, message)


def is_region_call(node: fx.Node) -> bool:
    """Whether a node calls a region that Dynamo traced once (`torch.compiler.nested_compile_region`)."""
    return node.target is getattr(torch.ops.higher_order, "invoke_subgraph", None)


def stamps_regions() -> bool:
    """Whether Dynamo traces a marked region once and stamps it out, each time with the weights of the module at hand.

    Seen in torch 2.13.0 and 2.14.1; versions before trace each region.
    """
    return "max_reuse_entries" in inspect.signature(torch.compiler.nested_compile_region).parameters


def release(package: str) -> tuple[int, ...]:
    """The first two numbers of an installed package's version: (2, 13)."""
    return tuple(map(int, re.findall(r"\d+", version(package))[:2]))


def outside_fake_mode() -> AbstractContextManager[Any]:
    """Context: tensors are real, also while a graph is traced with fake ones."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


@contextmanager
def fake_mode() -> Iterator[None]:
    """Context: tensors have shapes and dtypes, no values; sizes may depend on data, which `F.pad` takes in Python."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), enable_python_dispatcher():
        yield


@contextmanager
def without_default_cpu() -> Iterator[None]:
    """Context: `torch.set_default_device("cpu")` and `with torch.device("cpu")` are not in force.

    They say what holds anyway, by a mode under which Dynamo cannot trace much, such as `Tensor.unflatten`. Seen in
    torch 2.13.0 (`torch.utils._device.DeviceContext`, and the stack of function modes in `torch.overrides`).
    """
    from torch import overrides
    from torch.utils._device import DeviceContext

    found = list(overrides._get_current_function_mode_stack())
    kept = [mode for mode in found if not (isinstance(mode, DeviceContext) and mode.device == torch.device("cpu"))]
    if len(kept) == len(found):
        yield
        return

    def change(before: Sequence[Any], after: Sequence[Any]) -> None:
        for _ in before:
            overrides._pop_mode()
        for mode in after:
            overrides._push_mode(mode)

    change(found, kept)
    try:
        yield
    finally:
        change(kept, found)


# torch: collectives. Seen in 2.13.0.


def all_to_all(flat: torch.Tensor, received: list[int], sent: list[int], group: str) -> torch.Tensor:
    """Send stretches of a flat tensor, of these sizes, to all ranks of a group and get theirs; can be traced."""
    calls: Any = torch.ops._c10d_functional
    return calls.wait_tensor.default(calls.all_to_all_single.default(flat, received, sent, group))
