"""Private names of torch, diffusers, accelerate and peft that this library uses: each is there, or a test names it."""

from __future__ import annotations

import ast
import inspect
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from models import wan, wan_inputs
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from freeloc_fx import compat, compat_diffusers


def there(holds: bool, name: str, package: str = "torch") -> None:
    """Fail with the private name that is missing, and the version of its package."""
    assert holds, f"{package} {version(package)} has no {name} as freeloc_fx.compat expects it"


def test_nothing_is_left_out() -> None:
    """Every public function and constant of the two files is looked at here, or in the file beside this one."""
    code = [
        node
        for module in (compat, compat_diffusers)
        for node in ast.parse(Path(module.__file__).read_text(encoding="utf-8")).body
    ]
    names = {node.name for node in code if isinstance(node, ast.FunctionDef)}
    names |= {
        node.targets[0].id for node in code if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    used = {
        node.attr
        for file in Path(__file__).parent.glob("test_compat*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert names - used == set()


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in compat._ERRORS.items() for name in names])
def test_an_error_of_dynamo(kind: str, name: str) -> None:
    import torch._dynamo.exc as errors

    there(hasattr(errors, name), f"torch._dynamo.exc.{name}")
    assert issubclass(getattr(errors, name), Exception)
    assert getattr(errors, name) in compat.dynamo_errors(kind)


def test_what_wraps_a_backends_error() -> None:
    def fails(gm: Any, inputs: Any) -> Any:
        raise LookupError("mine")

    with pytest.raises(compat.dynamo_errors("BACKEND_FAILED")) as caught:
        torch.compile(lambda x: x + 1, backend=fails)(torch.ones(1))
    there(isinstance(caught.value.inner_exception, LookupError), "BackendCompilerFailed.inner_exception")


SETTINGS = {
    "recompile_limit": 7, "accumulated_recompile_limit": 7, "fail_on_recompile_limit_hit": True,
    "capture_dynamic_output_shape_ops": True, "ignore_logging_functions": {print},
}  # fmt: skip


METRICS = "Unexpected exception logging compilation metrics"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_dynamo(name: str) -> None:
    import torch._dynamo.config as config

    there(hasattr(config, name), f"torch._dynamo.config.{name}")
    before = getattr(config, name)
    with compat.dynamo_settings(**{name: SETTINGS[name]}):
        assert getattr(config, name) == SETTINGS[name] != before
    assert getattr(config, name) == before


def test_a_setting_that_dynamo_does_not_have_is_left_out() -> None:
    with compat.dynamo_settings(no_such_setting=1):
        pass


@pytest.mark.parametrize(("torch_is", "said"), [((2, 11), ["other"]), ((2, 13), ["other", METRICS])])
def test_quiet_metrics(
    torch_is: tuple[int, int], said: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch._dynamo import metrics_context

    monkeypatch.setattr(compat, "release", lambda _: torch_is)
    with compat._quiet_metrics():
        metrics_context.log.error("other")
        metrics_context.log.error(METRICS)
    assert caplog.messages == said
    metrics_context.log.error(METRICS)
    assert caplog.messages[-1] == METRICS and len(caplog.messages) == len(said) + 1


class Counts(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class CountsWhatIsNotCompiled(Counts):
    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


def test_dynamo_switched_off() -> None:
    said: list[str] = []
    from torch._dynamo import config, eval_frame

    there(hasattr(config, "disable"), "torch._dynamo.config.disable")
    there(hasattr(getattr(eval_frame, "_stance", None), "stance"), "torch._dynamo.eval_frame._stance.stance")
    assert compat.dynamo_switched_off() == ""
    with config.patch(disable=True):
        assert "TORCHDYNAMO_DISABLE" in compat.dynamo_switched_off()
    for stance in ("force_eager", "eager_on_recompile"):
        with torch.compiler.set_stance(stance):
            assert compat.dynamo_switched_off() == f"torch.compiler.set_stance({stance!r})"
            assert bool(compat.dynamo_switched_off(entirely=True)) == (stance == "force_eager")
    with Counts():
        assert compat.dynamo_switched_off() == "Counts, a TorchDispatchMode,"
    with CountsWhatIsNotCompiled(), compat.fake_mode():
        assert compat.dynamo_switched_off(entirely=True) == ""
    torch.jit.trace(lambda x: said.append(compat.dynamo_switched_off()) or x + 1, torch.ones(2), check_trace=False)
    assert said == ["torch.jit.trace"]
    assert compat.dynamo_switched_off() == ""


def test_backend_names() -> None:
    there("exclude_tags" in inspect.signature(torch.compiler.list_backends).parameters, "list_backends(exclude_tags)")
    assert "inductor" in compat.backend_names() and "aot_eager" not in compat.backend_names()
    assert {"inductor", "aot_eager"} <= set(compat.backend_names(all_of_them=True))


@pytest.mark.parametrize("name", ["_TorchCompileInductorWrapper", "_TorchCompileWrapper"])
def test_a_compiler_of_torch(name: str) -> None:
    there(hasattr(torch, name), f"torch.{name}")
    made = compat.torch_compiler("inductor" if "Inductor" in name else "aot_eager", None, None)
    there(isinstance(made, getattr(torch, name)) and callable(made), f"torch.{name}(name, mode, options, dynamic)")
    assert compat.is_inductor(made) == ("Inductor" in name)


def test_cuda_graphs_are_told_by_the_compilers_settings() -> None:
    made = compat.torch_compiler("inductor", "reduce-overhead", None)
    there(compat.uses_cuda_graphs(made), "_TorchCompileInductorWrapper.config['triton.cudagraphs']")
    assert not compat.uses_cuda_graphs(compat.torch_compiler("inductor", None, None))
    assert not compat.uses_cuda_graphs(compat.torch_compiler("aot_eager", None, None))
    by_name = compat.torch_compiler("cudagraphs", None, None)
    there(compat.uses_cuda_graphs(by_name), "_TorchCompileWrapper.compiler_name")
    there(compat.uses_cuda_graphs(by_name.compiler_fn), "CudagraphsBackend.compiler_name")  # type: ignore[attr-defined]


def test_no_cuda_graph_holds_an_opaque_operator() -> None:
    """What reads tables on the host, counts or follows steps would be recorded once and never run again."""
    import freeloc_fx.attention.checked
    import freeloc_fx.attention.observed
    import freeloc_fx.attention.scheduled
    import freeloc_fx.graph.leaf

    takes = inspect.signature(torch.library.custom_op).parameters
    if "tags" not in takes or not hasattr(torch.Tag, "cudagraph_unsafe"):
        assert compat.opaque_operator("freeloc_fx_tests::untagged") is not None
        return
    operators = (
        freeloc_fx.attention.op.long_attention,
        freeloc_fx.attention.op.long_attention_numbered,
        freeloc_fx.attention.checked.checked_attention,
        freeloc_fx.attention.observed.observe_attention,
        freeloc_fx.attention.repeated.attention_over_text,
        freeloc_fx.attention.scheduled.scheduled_attention,
        freeloc_fx.attention.scheduled.attention_within_texts,
        freeloc_fx.graph.leaf.leaf_call,
    )
    for operator in operators:
        assert torch.Tag.cudagraph_unsafe in operator._opoverload.tags, operator


def test_compiled_call() -> None:
    module = nn.Linear(2, 2)
    assert compat.compiled_call(module) is None
    module.compile(backend="eager")
    there(callable(vars(module).get(compat.COMPILED_CALL)), f"nn.Module.{compat.COMPILED_CALL}, written by compile()")
    assert compat.compiled_call(module) is vars(module)[compat.COMPILED_CALL]
    setattr(module, compat.COMPILED_CALL, lambda x: "compiled")
    there(module(torch.ones(1, 2)) == "compiled", f"nn.Module.{compat.COMPILED_CALL}, run by __call__")


def test_plain_call() -> None:
    there(hasattr(nn.Module, "_call_impl"), "nn.Module._call_impl")
    module = nn.Linear(2, 2)
    setattr(module, compat.COMPILED_CALL, lambda x: "compiled")
    module.register_forward_hook(lambda *_: "hooked")
    assert compat.plain_call(module)(torch.ones(1, 2)) == "hooked"


def test_unwrapped() -> None:
    module = nn.Linear(2, 2)
    there(compat.unwrapped(torch.compile(module, backend="eager")) is module, "OptimizedModule._orig_mod")
    assert compat.unwrapped(module) is module


@pytest.mark.parametrize("name", ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"])
def test_where_a_module_keeps_its_own_hooks(name: str) -> None:
    there(name in vars(nn.Linear(2, 2)), f"nn.Module.{name}")
    assert name in compat.own_hooks(nn.Linear(2, 2))


def test_torch_library() -> None:
    there(getattr(torch._C, "__file__", "").endswith((".so", ".pyd")), "torch._C.__file__")
    assert compat.torch_library() == torch._C.__file__


def test_storage_id() -> None:
    x = torch.ones(4)
    there(hasattr(x.untyped_storage(), "_cdata"), "UntypedStorage._cdata")
    assert compat.storage_id(x) == compat.storage_id(x[1:]) != compat.storage_id(torch.ones(4))


@pytest.fixture(scope="module")
def graph() -> torch.fx.Graph:
    """A captured Wan, as Dynamo hands it over."""
    found: list[torch.fx.Graph] = []

    def keep(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        found.append(gm.graph)
        return gm.forward

    with torch.no_grad():
        torch.compile(wan(num_layers=1), backend=keep, fullgraph=True, dynamic=False)(**wan_inputs(2))
    return found[0]


def test_example_value(graph: torch.fx.Graph) -> None:
    calls = [node for node in graph.nodes if node.op == "call_function"]
    there(
        any(isinstance(compat.example_value(node), torch.Tensor) for node in calls),
        "node.meta['example_value'], written by Dynamo",
    )


def test_module_stack(graph: torch.fx.Graph) -> None:
    stacks = [compat.module_stack(node) for node in graph.nodes]
    there(any(stacks), f"node.meta[{compat.STACK!r}], written by Dynamo")
    path, kind = list(max(stacks, key=len).values())[-1]
    assert isinstance(path, str) and "blocks" in path and kind is not None


def test_is_compiled_function() -> None:
    assert compat.is_compiled_function(torch.compile(torch.sin)) and not compat.is_compiled_function(torch.sin)


def test_without_default_cpu() -> None:
    modes = torch.overrides._get_current_function_mode_stack
    with torch.device("cpu"), torch.device("meta"):
        before = modes()
        with compat.without_default_cpu():
            assert modes() == before[1:]
        assert modes() == before


def test_stamps_regions() -> None:
    assert compat.release("torch") == tuple(int(n) for n in torch.__version__.split(".")[:2])
    assert compat.stamps_regions() == (compat.release("torch") >= (2, 13))


def test_stacked_module() -> None:
    """The keys of a stack are the modules' ids, with a number behind for later calls of the same one."""
    model, keys = wan(), []

    def keep(gm: torch.fx.GraphModule, inputs: Any) -> Any:
        keys.extend(key for node in gm.graph.nodes for key in compat.module_stack(node))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=keep, fullgraph=True)(**wan_inputs(2))
    there({compat.stacked_module(key) for key in keys} <= {id(module) for module in model.modules()}, "ids as keys")
    assert compat.stacked_module("123@2") == 123 and compat.stacked_module("blocks_0") is None


def test_source_name(graph: torch.fx.Graph) -> None:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    there(all(hasattr(node, "_dynamo_source") for node in placeholders), "_dynamo_source on a graph's placeholders")
    names = [compat.source_name(node) for node in placeholders]
    there(any("hidden_states" in (name or "") for name in names), "_dynamo_source.name")
    assert compat.source_name(next(node for node in graph.nodes if node.op == "call_function")) is None


def test_copy_source(graph: torch.fx.Graph) -> None:
    old = next(node for node in graph.nodes if node.op == "placeholder")
    new = torch.fx.Graph().placeholder("x")
    compat.copy_source(old, new)
    there(
        compat.source_name(new) == compat.source_name(old) is not None, "_dynamo_source on a placeholder, to be copied"
    )


def test_give_source(graph: torch.fx.Graph) -> None:
    node = graph.placeholder("table")
    compat.give_source(node, torch.ones(2, 3))
    assert compat.example_value(node).shape == (2, 3)
    there(compat.source_name(node) == "table", "torch._dynamo.source.ConstantSource(source_name=...)")


def test_assert_on_device() -> None:
    there(hasattr(torch, "_assert_async"), "torch._assert_async")
    compat.assert_on_device(torch.tensor(True), "fine")
    with pytest.raises(RuntimeError, match="said so"):
        compat.assert_on_device(torch.tensor(False), "said so")


def test_function_modes() -> None:
    class Counting(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    there(
        hasattr(torch.overrides, "_get_current_function_mode_stack"), "torch.overrides._get_current_function_mode_stack"
    )
    assert compat.function_modes() == []
    with Counting(), torch.device("cpu"):
        assert compat.function_modes() == ["Counting"]


def test_flex_as_it_is() -> None:
    from torch.nn.attention import flex_attention as module

    name = compat._flex_switch.name
    there(getattr(module, name, None) is False, f"torch.nn.attention.flex_attention.{name}")
    with compat.flex_as_it_is():
        assert getattr(module, name) is True
    assert getattr(module, name) is False

    first, second = compat.flex_as_it_is(), compat.flex_as_it_is()  # as two threads, the first of which is done first
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert getattr(module, name) is True
    second.__exit__(None, None, None)
    assert getattr(module, name) is False


def test_is_region_call() -> None:
    there(hasattr(torch.ops.higher_order, "invoke_subgraph"), "torch.ops.higher_order.invoke_subgraph")
    region = torch.fx.Graph()
    assert compat.is_region_call(region.call_function(torch.ops.higher_order.invoke_subgraph, ()))
    assert not compat.is_region_call(region.call_function(torch.add, ()))


def test_fake_mode() -> None:
    from torch._dispatch import python as dispatch
    from torch._subclasses import fake_tensor
    from torch.fx.experimental import symbolic_shapes

    there(hasattr(fake_tensor, "FakeTensorMode"), "torch._subclasses.fake_tensor.FakeTensorMode")
    there(hasattr(symbolic_shapes, "ShapeEnv"), "torch.fx.experimental.symbolic_shapes.ShapeEnv")
    there(hasattr(dispatch, "enable_python_dispatcher"), "torch._dispatch.python.enable_python_dispatcher")
    with compat.fake_mode():
        x = torch.ones(3)
        assert isinstance(x, fake_tensor.FakeTensor) and (x + x).shape == (3,)
        found = x.nonzero()
        assert torch.nn.functional.pad(found, (0, 0, 0, 3 - found.shape[0])).shape == (3, 1)


def test_set_example_value() -> None:
    node = torch.fx.Graph().placeholder("x")
    compat.set_example_value(node, torch.ones(2, 3))
    assert compat.example_value(node).shape == (2, 3)


def test_outside_fake_mode() -> None:
    from torch._subclasses import fake_tensor

    there(hasattr(fake_tensor, "unset_fake_temporarily"), "torch._subclasses.fake_tensor.unset_fake_temporarily")
    with compat.fake_mode(), compat.outside_fake_mode():
        assert torch.ones(3).tolist() == [1.0, 1.0, 1.0]
