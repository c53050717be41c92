"""The store of tables and masks: how many, how many bytes, and that neither bound changes a result."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from freeloc_fx.attention.cache import Cache
from freeloc_fx.attention.calls import lowering
from freeloc_fx.attention.flex import tables
from freeloc_fx.attention.flex.site import describe_site
from freeloc_fx.evaluation.cost import make_spec


def weighed(most: int, least: int = 1, size: int = 100) -> Cache:
    return Cache(size, weigh=len, most=most, least=least)


def test_what_was_used_least_lately_goes_until_the_bytes_fit() -> None:
    store = weighed(10)
    for key in "abc":
        store.get(key, lambda: b"1234")
    assert (store.built, store.bytes) == (3, 8)
    store.get("b", lambda: b"")  # still there, and the last one used now
    store.get("d", lambda: b"123456")
    assert store.bytes == 10
    store.get("b", lambda: b"never built")
    assert store.built == 4
    store.get("c", lambda: b"1")
    assert store.built == 5


def test_the_last_ones_stay_whatever_they_take() -> None:
    store = weighed(10, least=3)
    for _ in range(2):
        for key in "abc":
            store.get(key, lambda: bytes(100))
    assert (store.built, store.bytes) == (3, 300)
    store.get("d", lambda: b"")
    assert store.bytes == 200


def test_the_number_of_values_is_bounded_too_and_none_counts_twice() -> None:
    store = weighed(0, size=2)
    for key in "abcd":
        store.get(key, lambda: bytes(100))
    assert store.bytes == 200

    def again() -> bytes:  # another thread has built it meanwhile
        store.get("e", lambda: bytes(7))
        return bytes(5)

    store.get("e", again)
    assert store.bytes == 105


def test_tables_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tables._tables
    assert kept.most > 0 and kept.least >= 1
    store = Cache(kept.size, weigh=kept.weigh, most=kept.most, least=kept.least)
    monkeypatch.setattr(tables, "_tables", store)
    spec = make_spec("vrpr+tsa", 4, 3, 4, 16, trained=6)
    site = describe_site(spec, (1, 2, spec.grid.sequence, 16), torch.float32)
    made = tables.site_tables(site, 0, torch.device("cpu"))
    assert store.bytes == sum(table.nbytes for table in made.values()) > 0


def test_masks_that_never_fit_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec("vrpr+tsa", 4, 3, 4, 16, trained=6)
    q, k, v = torch.randn(3, 1, 2, spec.grid.sequence, 16).unbind(0)
    results, stores = [], []
    for most in (0, 1):
        weigh: Any = lowering._masks.weigh
        stores.append(Cache(100, weigh=weigh, most=most))
        monkeypatch.setattr(lowering, "_masks", stores[-1])
        results += [lowering.calls(q, k, v, spec) for _ in range(2)]
    plain, narrow = stores
    assert narrow.built > plain.built > 1 and plain.bytes > narrow.bytes > 0
    assert all(torch.equal(result, results[0]) for result in results)
