"""Nothing keeps a model that its user has dropped, and what a graph names lives as long as the graph."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from models import wan, wan_inputs

from freeloc_fx import Profile, plan, transform
from freeloc_fx.compiler.backend import Backend
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.errors import TransformError

PROFILE = Profile(trained_frames=5, layers="vrpr+tsa")


@pytest.mark.parametrize("frames", [3, 9])
def test_a_model_that_was_called_is_freed(frames: int) -> None:
    model = wan()
    changed = transform(model, PROFILE, backend="eager")
    with torch.no_grad():
        changed(**wan_inputs(frames))
    found = weakref.ref(model), weakref.ref(changed), weakref.ref(model.blocks[0].attn1.to_q.weight)
    del model, changed
    gc.collect()  # and no reset of Dynamo
    assert [one() for one in found] == [None, None, None]


def test_a_model_that_was_planned_is_freed() -> None:
    model = wan()
    plan(model, PROFILE, frames=9, height=4, width=4)
    found = weakref.ref(model)
    del model
    gc.collect()
    assert found() is None


def test_specs_live_as_long_as_the_graph_that_names_them() -> None:
    model = wan()
    expected = transform(model, PROFILE, backend="eager")
    # A backend of one capture only, which nothing else keeps.
    call = torch.compile(model, backend=lambda g, i: Backend(PROFILE, layer_table(model), None, model=model)(g, i))
    with torch.no_grad():
        first = call(**wan_inputs(9))[0]
        gc.collect()
        assert torch.equal(call(**wan_inputs(9))[0], first)
        assert torch.equal(first, expected(**wan_inputs(9))[0])


def test_a_wrapper_of_torch_compile_is_refused() -> None:
    with pytest.raises(TransformError, match="already compiled"):
        transform(torch.compile(wan()), PROFILE)
