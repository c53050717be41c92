"""Position maps of the peers against their formulas, written out pair by pair."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freeloc_fx.errors import StrategyError
from freeloc_fx.method.build import build
from freeloc_fx.method.peers import Clip, Group, ShiftedGroups
from freeloc_fx.method.peers.longdiff import MOST_SHIFTS, group_size
from freeloc_fx.method.positions import Band, PositionMap, distances, two_sided
from freeloc_fx.method.strategy import Geometry

checked = settings(max_examples=50, deadline=None)
frame_counts = st.integers(1, 36)


@st.composite
def shifted(draw: st.DrawFn) -> ShiftedGroups:
    size = draw(st.integers(1, 8))
    return ShiftedGroups(size, draw(st.integers(0, size - 1)))


clips = st.builds(Clip, st.integers(0, 14))
groups = st.builds(Group, st.integers(1, 12), st.integers(1, 9))


def brute(m: Any, i: int, j: int) -> int:
    """P of one pair, in plain Python."""
    if i < j:
        return -brute(m, j, i)
    d = i - j
    if isinstance(m, Clip):
        return min(d, m.bound)
    if isinstance(m, Group):
        return d if d < m.near else i // m.group - j // m.group + m.near - m.near // m.group
    return max(0, math.ceil((d - m.shift) / m.size))


@checked
@given(clips | groups | shifted(), frame_counts)
def test_table_is_the_formula_and_odd(m: PositionMap, frames: int) -> None:
    table = m.table(frames)
    assert table.dtype == np.float64 and table.shape == (frames, frames)
    np.testing.assert_array_equal(table, [[brute(m, i, j) for j in range(frames)] for i in range(frames)])
    np.testing.assert_array_equal(table, -table.T)


@checked
@given(clips | groups | shifted(), frame_counts)
def test_bands_partition_all_pairs_and_give_the_table(m: PositionMap, frames: int) -> None:
    count = np.zeros((frames, frames), int)
    table = np.full((frames, frames), np.nan)
    for band in m.bands(frames):
        assert band.query.shape == band.key.shape == (frames,)
        assert band.query.dtype == band.key.dtype == np.float64
        assert band.pairs.shape == (frames, frames) and band.pairs.dtype == np.bool_ and band.pairs.any()
        count += band.pairs
        table[band.pairs] = (band.query[:, None] - band.key[None, :])[band.pairs]
    np.testing.assert_array_equal(count, 1)
    np.testing.assert_array_equal(table, m.table(frames))


@checked
@given(st.integers(0, 14), frame_counts)
def test_clip_is_the_identity_within_its_bound_and_constant_beyond(bound: int, frames: int) -> None:
    d, p = distances(frames), Clip(bound).table(frames)
    near = np.abs(d) <= bound
    np.testing.assert_array_equal(p[near], d[near])
    assert (np.abs(p[~near]) == bound).all()


@pytest.mark.parametrize(("frames", "bands"), [(4, 1), (5, 2), (10, 2), (11, 3), (40, 3)])
def test_clip_and_group_take_one_band_while_no_frame_has_both_sides(frames: int, bands: int) -> None:
    assert len(Clip(4).bands(frames)) == (1 if frames <= 5 else bands)
    assert len(Group(5, 3).bands(frames)) == (1 if frames <= 5 else bands)


@checked
@given(st.integers(1, 12), st.integers(1, 9), frame_counts)
def test_group_is_the_identity_near_and_coarse_beyond(near: int, group: int, frames: int) -> None:
    m = Group(near, group)
    d, p = distances(frames), m.table(frames)
    inside = np.abs(d) < near
    np.testing.assert_array_equal(p[inside], d[inside])
    far = np.abs(p[~inside])
    assert m.reach(frames) == np.abs(p).max()
    if far.size:
        assert far.min() >= near and far.max() == (frames - 1) // group + near - near // group
    np.testing.assert_array_equal(Group(near, 1).table(frames), d)


@checked
@given(st.integers(1, 8), frame_counts)
def test_the_shifted_groupings_average_to_the_distance(size: int, frames: int) -> None:
    tables = [ShiftedGroups(size, shift).table(frames) for shift in range(size)]
    np.testing.assert_allclose(np.mean(tables, 0), distances(frames) / size, atol=1e-12)
    for table in tables:
        assert set(np.diff(table[:, 0]).tolist()) <= {0.0, 1.0}
    np.testing.assert_array_equal(ShiftedGroups(1).table(frames), distances(frames))


@checked
@given(shifted(), frame_counts)
def test_shifted_groups_take_at_most_two_bands_a_residue(m: ShiftedGroups, frames: int) -> None:
    count = len(list(m.bands(frames)))
    assert count <= 2 * m.size
    if 2 * m.shift == m.size - 1:
        assert count == min(m.size, frames)


@given(st.integers(2, 21), st.integers(1, 90))
@checked
def test_solved_settings_stay_within_the_trained_distances(trained: int, more: int) -> None:
    geometry = Geometry(trained, trained + more, 2, 3)
    for name in ("clip", "group", "longdiff"):
        for member in build(name, geometry).members:
            assert np.abs(member.positions.table(geometry.frames)).max() <= trained - 1
    group = build("group", geometry).positions
    assert isinstance(group, Group)
    if group.group > 1:  # the smallest that does
        assert Group(group.near, group.group - 1).reach(geometry.frames) > trained - 1


def test_longdiff_has_one_strategy_a_shift() -> None:
    geometry = Geometry(21, 81, 2, 3)
    assert group_size(21, 81) == 4 and group_size(16, 128) == 9 and group_size(21, 21) == 1
    maps = [member.positions for member in build("longdiff", geometry).members]
    assert maps == [ShiftedGroups(4, shift) for shift in range(4)]
    two = build("longdiff", geometry, {"longdiff": {"shifts": 2, "frames": 11}}).members
    assert [member.positions for member in two] == [ShiftedGroups(8, 0), ShiftedGroups(8, 4)]
    assert len(build("longdiff", Geometry(3, 99, 1, 2)).members) == MOST_SHIFTS


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        ("clip", {"bound": -1}, r"clip\.bound: expected an integer of at least 0, found -1"),
        ("clip", {"bound": True}, r"clip\.bound: expected an integer of at least 0, found True"),
        ("clip", {"w": 3}, r"clip\.w: unknown key; expected bound"),
        ("clip", [3], r"clip: expected a mapping of bound, found \[3\]"),
        ("group", {"near": 0}, r"group\.near: expected an integer of at least 1, found 0"),
        ("group", {"near": 30}, r"group\.near: no group size keeps 81 latent frames within the trained 21; .*found 30"),
        ("group", {"group": 1.0}, r"group\.group: expected an integer of at least 1, found 1\.0"),
        ("longdiff", {"shifts": 9}, r"longdiff\.shifts: 4 groupings differ at 81 frames, found 9"),
        ("longdiff", {"frames": 22}, r"longdiff\.frames: expected 2 to the trained 21, found 22"),
    ],
)
def test_refused(name: str, own: Any, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        build(name, Geometry(21, 81, 2, 3), {name: own})


def test_the_maps_themselves_refuse() -> None:
    with pytest.raises(StrategyError, match=r"longdiff\.shift: expected 0 to 3, found 4"):
        ShiftedGroups(4, 4)
    with pytest.raises(StrategyError, match=r"clip\.bound: expected an integer of at least 0, found 2\.5"):
        Clip(2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("m", [Clip(3), Group(4, 2), ShiftedGroups(5, 2)])
def test_describe_is_json_and_rebuilds_the_map(m: Any) -> None:
    described = json.loads(json.dumps(m.describe()))
    assert isinstance(described.pop("map"), str)
    assert type(m)(**described) == m and hash(type(m)(**described)) == hash(m)
    assert isinstance(m, PositionMap)


def test_two_sided_without_pairs_has_no_band() -> None:
    zeros = np.zeros(3)
    assert two_sided(zeros, zeros, 1.0, np.zeros((3, 3), bool)) == []
    (band,) = two_sided(zeros, zeros, 0.0, np.ones((3, 3), bool))
    assert isinstance(band, Band) and band.pairs.all() and not band.query.any()
