"""Clips with a start image, keyframes and references: where they stand, and that rewritten attention is right."""

from __future__ import annotations

import gc
from typing import Any

import diffusers
import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from accelerate.hooks import ModelHook, add_hook_to_module
from answers import distance
from conditioned import NAMES, conditioned, minimax_h3, pixel_coords
from literal import attention, literal
from models import DiT, latents
from packed_dit import Packed, packed
from slow import slow
from torch.utils._pytree import tree_leaves

from freeloc_fx import Profile, plans, transform
from freeloc_fx.attention.registry import Specs
from freeloc_fx.cli.inspect import _show
from freeloc_fx.compiler import newest, positions
from freeloc_fx.compiler.backend import Backend
from freeloc_fx.compiler.capture.conventions import layer_table
from freeloc_fx.compiler.capture.facts import facts_of
from freeloc_fx.compiler.capture.rehearsal import plan_of_call
from freeloc_fx.compiler.capture.shared import arguments_among
from freeloc_fx.errors import CaptureError
from freeloc_fx.method.grid import Further
from freeloc_fx.planning.plan import Plan

TRAINED = 5
PROFILE = Profile(trained_frames=TRAINED, layers="vrpr+tsa")
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")


def run(model: Any, given: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result = model(**given)
    result = result[0] if isinstance(result, tuple) else result
    assert isinstance(result, torch.Tensor) and result.isfinite().all()
    return result


@pytest.mark.parametrize("name", [n if n == "LTX" else slow(n) for n in NAMES])
@pytest.mark.parametrize("times", [2, slow(4)])
def test_a_conditioned_clip(name: str, times: int) -> None:
    """Its frames stand where the pipeline has put them; the result is the formula's; short clips stay bitwise."""
    case = conditioned(name, times * TRAINED)
    changed = transform(case.model, PROFILE, backend="eager", attention="reference")
    found = run(changed, case.given)
    (plan,) = plans(changed)
    for site in plan.sites:
        assert (site.grid.frames, site.grid.before, site.grid.after) == (times * TRAINED, case.before, case.after)
    assert plan.rewritten == len(plan.sites) > 0
    with attention(literal(plan, F.scaled_dot_product_attention)):
        expected = run(case.model, case.given)
    assert distance(found, expected) <= 1e-4
    assert distance(run(case.model, case.given), expected) > 1e-3, "the strategy does not show in the output"

    short = conditioned(name, TRAINED)
    assert torch.equal(run(changed, short.given), run(case.model, short.given))
    assert plans(changed)[-1].rewritten == 0


@pytest.mark.parametrize("name", ["LTX", slow("LTX2"), slow("Kandinsky6")])
@pytest.mark.parametrize("lowering", ["tiles", slow("flex"), slow("calls"), slow("auto")])
def test_fast_lowerings(name: str, lowering: str) -> None:
    case = conditioned(name, 2 * TRAINED)
    expected = run(transform(case.model, PROFILE, backend="eager", attention="reference"), case.given)
    changed = transform(case.model, PROFILE, backend="eager", attention=lowering, verify=True)
    if lowering == "calls" and name == "LTX2":
        with pytest.raises(CaptureError, match=r"calls run frames of one size, expected 2x4 tokens, found .*1x2"):
            run(changed, case.given)
        return
    assert distance(run(changed, case.given), expected) <= 1e-4


# Positions that come as numbers


@pytest.mark.parametrize(
    ("backend", "lowering"), [("eager", "reference"), slow("aot_eager", "flex"), slow("inductor", "tiles")]
)
def test_keyframes_that_move_are_planned_anew(backend: str, lowering: str) -> None:
    """The same shapes with other coordinates are another plan, and the first one comes back as it was."""
    case = conditioned("LTX", 2 * TRAINED)
    changed = transform(case.model, PROFILE, backend=backend, attention=lowering)
    first = run(changed, case.given)
    moved = conditioned("LTX", 2 * TRAINED, keyframes=(9, 64))
    given = case.given | {"video_coords": moved.given["video_coords"]}
    second = run(changed, given)
    before, after = plans(changed)
    assert (before.grid.before, after.grid.before) == (case.before, moved.before)
    for plan, out, arguments in ((before, first, case.given), (after, second, given)):
        with attention(literal(plan, F.scaled_dot_product_attention)):
            assert distance(out, run(case.model, arguments)) <= 1e-4
    assert distance(first, second) > 1e-3
    for coords in (given["video_coords"], given["video_coords"].clone()):
        assert torch.equal(run(changed, given | {"video_coords": coords}), second)
    assert torch.equal(run(changed, case.given), first)
    coords = case.given["video_coords"]
    coords.copy_(given["video_coords"])  # written in place, as no pipeline does
    assert torch.equal(run(changed, case.given), second)
    assert len(plans(changed)) == 2


@pytest.mark.parametrize(
    ("backend", "lowering"), [("eager", "tiles"), slow("eager", "flex"), slow("inductor", "tiles")]
)
def test_a_server_of_ever_new_keyframes_keeps_a_few_plans(
    backend: str, lowering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was used least lately goes, with all that was made of it, and is planned anew."""
    monkeypatch.setattr(positions, "KEPT", 2)
    monkeypatch.setattr(newest, "NEWEST", 3)
    calls: list[dict[str, Any]] = []
    for first in (17, 1, 9, 25):
        case = conditioned("LTX", 2 * TRAINED, keyframes=(first,), reference=0)
        calls.append(case.given)
    changed = transform(case.model, PROFILE, backend=backend, attention=lowering)
    kinds = [Plan, positions.Position, Specs, fx.GraphModule]
    if lowering == "flex":  # functions that are captured for tables of another size stay, a few small graphs a set
        kinds.remove(fx.GraphModule)

    def count() -> list[int]:
        gc.collect()
        objects = gc.get_objects()
        return [sum(issubclass(type(one), kind) for one in objects) for kind in kinds]

    found = [run(changed, given) for given in calls[:3]]
    before = count()
    assert torch.equal(run(changed, calls[1]), found[1]) and len(plans(changed)) == 3, "one of the two that are kept"
    found.append(run(changed, calls[3]))
    assert [plan.grid.before[0].time for plan in plans(changed)] == [1.0, 2.0, 4.0]
    assert torch.equal(run(changed, calls[0]), found[0]) and len({*map(id, plans(changed))}) == 3
    assert all(after <= known for after, known in zip(count(), before, strict=True)), (kinds, before, count())


@pytest.mark.slow
def test_as_many_tokens_may_be_a_longer_clip() -> None:
    """Twelve frames, then ten with two keyframes: the shapes are equal."""
    case = conditioned("LTX", 10, keyframes=(17, 40), reference=0)
    coords = pixel_coords(12, 2, 3, causal=True, ends=False)
    coords[:, 0] /= 25
    changed = transform(case.model, PROFILE, backend="eager", attention="reference")
    run(changed, case.given | {"video_coords": coords})
    run(changed, case.given)
    assert [(plan.grid.frames, len(plan.grid.further)) for plan in plans(changed)] == [(12, 0), (10, 2)]


def test_a_short_clip_may_become_a_long_one() -> None:
    """What was left alone at first is not left alone where as many tokens are a long clip."""
    case = conditioned("LTX", TRAINED, keyframes=(17, 20, 33), reference=0)
    coords = pixel_coords(TRAINED + 3, 2, 3, causal=True, ends=False)
    coords[:, 0] /= 25
    changed = transform(case.model, PROFILE, backend="eager", attention="reference")
    run(changed, case.given)
    found = run(changed, case.given | {"video_coords": coords})
    assert [plan.rewritten for plan in plans(changed)] == [0, 2]
    with attention(literal(plans(changed)[1], F.scaled_dot_product_attention)):
        assert distance(found, run(case.model, case.given | {"video_coords": coords})) <= 1e-4


def test_a_plan_knows_which_arguments_say_where_tokens_stand() -> None:
    """Ranks that share out tokens ask for them, since each sees a part of the tables only."""
    case = conditioned("LTX", 2 * TRAINED)
    backend = Backend(PROFILE, layer_table(case.model), None, model=case.model).for_planning()
    plan = plan_of_call(case.model, case.model, backend, facts_of(case.model, case.given), case.given)
    assert plan.grid.before == case.before
    (place,) = arguments_among(case.given, backend.read)
    assert tree_leaves(case.given)[place] is case.given["video_coords"]


# Small models of other making


class Beside(DiT):
    """A clip with copies of its frames at `times` behind it (or before it), and turned or unturned text at the end."""

    def __init__(self, times: tuple[float, ...], *, first: bool = False, text: int = 0, turned: bool = False) -> None:
        super().__init__((3, 2, 2))
        self.times, self.first, self.text, self.turned = times, first, text, turned

    def forward(self, hidden_states: torch.Tensor, context: Any = None) -> torch.Tensor:
        shape = tuple(int(n) for n in hidden_states.shape[2:])
        frame = shape[1] * shape[2]
        cos, sin = (x.double() for x in self.tables(shape))  # type: ignore[arg-type]
        one = torch.complex(cos, sin)[:frame]
        moved = [torch.cat([torch.polar(torch.ones(3).double(), self.omega(0) * t), torch.ones(4)]) for t in self.times]
        more = [one * turn for turn in moved]
        clip = torch.complex(cos, sin)
        x = self.proj_in(hidden_states.flatten(2).transpose(1, 2))
        some = x[:, : frame * len(more)].flip(1)
        parts = [some, x] if self.first else [x, some]
        words = self.proj_in(torch.ones(1, self.text, 4))
        of_words = torch.ones(self.text, 7, dtype=torch.complex128)
        if self.turned:
            of_words[:, :3] = torch.exp(1j * self.omega(0) * (0.5 + torch.arange(self.text))[:, None])
        turn = torch.cat([*more, clip, of_words] if self.first else [clip, *more, of_words])
        x = torch.cat([*parts, words], 1)
        tables = turn.real.float(), turn.imag.float()
        for block in self.blocks:
            x = block(x, tables, context)
        start = frame * len(more) * self.first
        result: torch.Tensor = self.proj_out(x[:, start : start + shape[0] * frame]).transpose(1, 2)
        return result.unflatten(2, shape)


@pytest.mark.parametrize(("first", "text"), [(False, 0), (True, 3), slow(True, 0), slow(False, 3)])
def test_a_model_of_our_own(first: bool, text: int, capsys: pytest.CaptureFixture[str]) -> None:
    model = Beside((7.0, 2.5, 2.5), first=first, text=text)
    given = {"hidden_states": latents(11, 2, 3)}
    changed = transform(model, PROFILE, backend="eager", attention="tiles", verify=True)
    found = run(changed, given)
    (plan,) = plans(changed)
    frames = tuple(Further(time, 2, 3) for time in (7.0, 2.5, 2.5))
    assert (plan.grid.before, plan.grid.after) == ((frames, ()) if first else ((), frames))
    assert (plan.grid.frames, plan.grid.text_last) == (11, text)
    assert "3 further frames" in str(plan)
    _show("what inspect prints", plan)
    start = 0 if first else 66
    assert f"tokens {start}-{start + 17}: 3 further frames of 2x3 at times 7, 2.5, 2.5" in capsys.readouterr().out
    with attention(literal(plan, F.scaled_dot_product_attention)):
        assert distance(found, run(model, given)) <= 1e-4


def test_a_reference_as_long_as_the_clip_is_refused_where_nothing_tells_them_apart() -> None:
    """Both together look like two frames of a very large clip, which they are not."""
    model = Beside(tuple(9.0 + t for t in range(6)))
    with pytest.raises(CaptureError, match="no clip of evenly spaced frames with fewer others beside it"):
        transform(model, PROFILE, backend="eager")(latents(6, 2, 3))


@pytest.mark.parametrize("lowering", ["tiles", slow("flex")])
def test_a_clip_that_is_spaced_unevenly_among_text_and_sound(lowering: str) -> None:
    """Strategies act on times whose mean step is one latent frame; words and sound keep their own."""
    model, given = Packed((4, 2, 2)), packed(12)
    changed = transform(model, PROFILE, backend="eager", attention=lowering, verify=True)
    found = run(changed, given)
    (plan,) = plans(changed)
    times = given["position_ids"][13::6, 0] - 5
    assert (plan.grid.frames, plan.grid.text_first, plan.grid.turned) == (12, 13, 12)
    assert torch.allclose(torch.tensor(plan.grid.times), times * 11 / times[-1], atol=1 / 128)
    assert plan.rewritten == 2
    with attention(literal(plan, F.scaled_dot_product_attention)):
        assert distance(found, run(model, given)) <= 1e-4
    short = packed(5)
    assert torch.equal(run(changed, short), run(model, short))


def test_a_later_clip_of_the_same_distances_is_no_other_plan() -> None:
    model, given = Packed((4, 2, 2)), packed(12, text=0, sound=0)
    changed = transform(model, PROFILE, backend="eager", attention="tiles")
    found = run(changed, given)
    later = given | {"position_ids": given["position_ids"] + torch.tensor([7.0, 0.0, 0.0])}
    assert distance(run(changed, later), found) <= 1e-4
    assert len(plans(changed)) == 1


def test_block_by_block_words_tell_how_far_apart_frames_are() -> None:
    """A block is given tables, in which nothing can be moved: a step of 20/3 radians shows up to whole turns."""
    given, expected = packed(12), []
    for by_block in (False, True):
        model = Packed((4, 2, 2))
        model.load_state_dict(expected[0].state_dict() if expected else model.state_dict())
        if by_block:
            add_hook_to_module(model.blocks[1], ModelHook())
        changed = transform(model, PROFILE, backend="eager", attention="reference")
        expected += [model, run(changed, given), plans(changed)[0]]
    assert expected[2].grid == expected[5].grid and expected[5].rewritten == 2
    assert distance(expected[4], expected[1]) <= 1e-5


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(diffusers, "MiniMaxH3Transformer3DModel"), reason="an older diffusers")
def test_minimax_h3() -> None:
    model, given = minimax_h3(4 * TRAINED)
    changed = transform(model, PROFILE, backend="eager", attention="tiles", verify=True)
    found = run(changed, given)
    (plan,) = plans(changed)
    assert (plan.grid.frames, plan.grid.tokens, plan.grid.text_first, plan.grid.turned) == (20, 6, 13, 12)
    assert plan.grid.uneven[:3] == pytest.approx((0, 19 / 64, 19 / 64 * 5), abs=0.06) and plan.rewritten == 2
    with attention(literal(plan, F.scaled_dot_product_attention)):
        assert distance(found, run(model, given)) <= 1e-4
    model, short = minimax_h3(TRAINED)
    assert torch.equal(run(changed, short), run(model, short))


@pytest.mark.parametrize("strategy", ["vrpr+tsa", slow("vrpr+squeeze")])
def test_turned_text_keeps_its_own_positions(strategy: str) -> None:
    """Words that RoPE turns in time alone are text: dense, and at their own distances from each other."""
    model = Beside((7.0,), text=4, turned=True)
    given = {"hidden_states": latents(11, 2, 3)}
    changed = transform(model, PROFILE.with_layers(strategy), backend="eager", attention="tiles", verify=True)
    found = run(changed, given)
    (plan,) = plans(changed)
    assert (plan.grid.text_last, plan.grid.turned, len(plan.grid.after)) == (4, 4, 1)
    with attention(literal(plan, F.scaled_dot_product_attention)):
        gap = distance(found, run(model, given))
    assert gap <= 1e-4 if strategy == "vrpr+tsa" else gap > 1e-3  # the literal attention squeezes nothing
