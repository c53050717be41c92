"""Specs by key and number: known as long as somebody who added them lives, one entry for equal ones, nothing grows."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from models import wan
from transformed import run

from freeloc_fx import Profile, transform
from freeloc_fx.attention import registry
from freeloc_fx.attention.registry import Specs, by_key, by_number
from freeloc_fx.errors import CaptureError
from freeloc_fx.evaluation.cost import make_spec
from freeloc_fx.method.spec import AttentionSpec


def spec(extension: int = 2) -> AttentionSpec:
    """A new object each time, of a grid that no other test uses."""
    return make_spec("vrpr+tsa", extension, 3, 7, dim=16, trained=5)


def test_a_spec_is_found_by_its_key_and_its_number() -> None:
    specs, known = Specs(), spec()
    key = specs.add(known)
    number = specs.number(key)
    assert by_key(key) is known and by_number(number) is known
    assert (number.dtype, number.shape, number.device.type) == (torch.int64, (), "cpu")
    assert specs.number(key) is number, "a graph reads the same tensor each time"
    assert specs.add(spec()) == key


def test_equal_specs_of_two_backends_share_one_number() -> None:
    one, two = Specs(), Specs()
    key = one.add(spec())
    assert two.add(spec()) == key
    assert two.number(key) is one.number(key)
    other = two.add(spec(3))
    assert other != key and int(two.number(other)) != int(two.number(key))


def test_a_spec_is_gone_with_the_last_that_holds_it() -> None:
    one, two, three = Specs(), Specs(), Specs()
    known = spec()
    seen = weakref.ref(known)
    key = one.add(known)
    del known
    two.add(spec())
    number = three.number(key)  # asking for a number holds it as well
    for holder in ("one", "two"):
        if holder == "one":
            del one
        else:
            del two
        gc.collect()
        assert by_key(key) is seen() and by_number(number) is seen()
    del three
    gc.collect()
    assert seen() is None
    with pytest.raises(CaptureError, match="no such spec lives"):
        by_key(key)
    with pytest.raises(CaptureError, match=f"long attention number {int(number)}: expected that of one of the"):
        by_number(number)


def test_a_spec_that_comes_back_has_a_new_number() -> None:
    """A graph that is kept beyond its backend must not run another spec."""
    specs = Specs()
    key = specs.add(spec())
    first = int(specs.number(key))
    del specs
    gc.collect()
    again = Specs()
    assert again.add(spec()) == key
    assert int(again.number(key)) != first


def test_what_is_unknown_is_an_error() -> None:
    with pytest.raises(CaptureError, match=r"long attention 'no such key': no such spec lives"):
        by_key("no such key")
    with pytest.raises(CaptureError, match=r"long attention 'no such key': no such spec lives"):
        Specs().number("no such key")
    with pytest.raises(CaptureError, match=r"long attention number -1: expected that of one of the \d+ living specs"):
        by_number(torch.tensor(-1))


@pytest.mark.slow
def test_nothing_grows_while_models_come_and_go() -> None:
    model = wan(num_layers=1)

    def known() -> tuple[set[str], set[int]]:
        torch._dynamo.reset()
        gc.collect()
        return set(registry._BY_KEY), set(registry._BY_INDEX)

    keys, numbers = known()  # what other tests of this process still hold
    for number in range(6):
        # A trained length of its own, so that no other test holds the same spec.
        changed = transform(model, Profile(trained_frames=7, layers="vrpr+tsa"), backend="eager")
        run(changed, frames=13 + number % 2)
        assert len(set(registry._BY_KEY) - keys) == 1
        assert len(set(registry._BY_INDEX) - numbers) == 1
        del changed
        now = known()
        assert now[0] <= keys and now[1] <= numbers
