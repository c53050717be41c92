"""Something in place of an attribute for a while: what is there within the context, and what is left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import nn

from freeloc_fx.compiler.capture.swapped import ABSENT, swapped


class Base:
    name = "of the class"


class Owner(Base):
    pass


def test_an_own_entry_is_put_back() -> None:
    owner = Owner()
    owner.name = "own"
    with swapped(owner, "name", "swapped"):
        assert owner.name == "swapped"
    assert vars(owner) == {"name": "own"}


def test_where_the_owner_had_none_it_has_none_again() -> None:
    owner = Owner()
    with swapped(owner, "name", "swapped"):
        assert owner.name == "swapped"
    assert vars(owner) == {} and owner.name == "of the class"


def test_absent_lets_the_class_show() -> None:
    owner = Owner()
    owner.name = "own"
    with swapped(owner, "name", ABSENT):
        assert vars(owner) == {} and owner.name == "of the class"
    assert owner.name == "own"
    del owner.name
    with swapped(owner, "name", ABSENT):
        assert vars(owner) == {}
    assert vars(owner) == {}


@pytest.mark.parametrize("values", [("one", "two"), ("one", ABSENT), (ABSENT, "two"), (None, None)])
def test_swaps_may_be_nested(values: tuple[object, object]) -> None:
    first, second = values
    owner = Owner()
    owner.name = "own"
    with swapped(owner, "name", first):
        with swapped(owner, "name", second):
            assert vars(owner).get("name", ABSENT) is second
        assert vars(owner).get("name", ABSENT) is first
    assert owner.name == "own"


def test_what_somebody_puts_on_top_stays() -> None:
    owner = Owner()
    owner.name = "own"
    with swapped(owner, "name", "swapped"):
        owner.name = "of somebody else"
    assert owner.name == "of somebody else"
    with swapped(owner, "name", "swapped"):
        del owner.name
    assert vars(owner) == {}, "taken away is on top as well"
    with swapped(owner, "name", ABSENT):
        owner.name = "added"
    assert owner.name == "added"


def test_what_somebody_puts_on_top_and_takes_away_again() -> None:
    owner = Owner()
    with swapped(owner, "name", "swapped"):
        with swapped(owner, "name", "of somebody else"):
            pass
        assert owner.name == "swapped"
    assert vars(owner) == {}


def test_the_owner_may_be_a_class() -> None:
    def before(self: Owner) -> str:
        return "before"

    def after(self: Owner) -> str:
        return "after"

    class Mine(Owner):
        speak: Callable[[Owner], str] = before

    class Theirs(Mine):
        pass

    with swapped(Mine, "speak", after):
        assert Mine().speak() == Theirs().speak() == "after"
        with swapped(Theirs, "speak", before):
            assert (Mine().speak(), Theirs().speak()) == ("after", "before")
        assert "speak" not in vars(Theirs)
    assert vars(Mine)["speak"] is before


@pytest.mark.parametrize("owner", [Owner(), Owner, nn.Linear(1, 1)], ids=["object", "class", "module"])
def test_an_error_inside_passes_and_everything_is_put_back(owner: object) -> None:
    before = dict(vars(owner))
    with pytest.raises(RuntimeError, match="inside"), swapped(owner, "forward", "swapped"):
        assert vars(owner)["forward"] == "swapped"
        raise RuntimeError("inside")
    assert dict(vars(owner)) == before
