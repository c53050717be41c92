"""Transformed models under diffusers' context parallelism, on two and four ranks, against one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers_models import CASES, arguments, build
from models import DiT, latents, wan
from ranks import context_parallel, of_first, on_ranks
from sharing_plans import PLANS
from slow import slow
from transformed import ALL, distance, run
from words import Apart, Words, of_words, shared_apart, shared_words

import freeloc_fx
from freeloc_fx import Profile, plans, transform
from freeloc_fx.attention.exchange import gather_along, heads_to_tokens, tokens_to_heads
from freeloc_fx.cli.shares import shares
from freeloc_fx.compat_diffusers import sharding_hooks
from freeloc_fx.compiler.capture.parallel import gathering, token_group_of
from freeloc_fx.errors import CaptureError, TransformError
from freeloc_fx.method.catalogue import PARTS
from freeloc_fx.method.grid import RopeLayout
from freeloc_fx.method.shards import Layout, Shards, diffusers_takes

PLAIN: dict[str, Any] = {"backend": "eager", "attention": "tiles"}
LAYERS = (
    *(["direct"], ["vrpr", "tsa", "temp"], ["clip", "window", "squeeze"], ["group", "anchors", "hold"]),
    *(["pi", "ultravico"], ["ntk"], ["riflex"], ["yarn"], ["freelong"], ["freelong++"], ["longdiff"]),
)
EVERY = Profile(trained_frames=5, layers={layer: "+".join(parts) for layer, parts in enumerate(LAYERS)})
"""Each part in one layer; those that set different things share one, since each layer takes its time."""


def shared_wan(ranks: int, before: bool, profile: Profile, options: dict[str, Any], **config: Any) -> Any:
    """A transformed Wan whose tokens are shared out, before or after it is transformed."""
    model = wan(**config)
    if before:
        context_parallel(model, ulysses_degree=ranks)
    changed = transform(model, profile, **options)
    if not before:
        context_parallel(changed, ulysses_degree=ranks)
    return changed


# What the ranks run


def exchanges(rank: int, ranks: int) -> None:
    """Every layout, there and back; each rank makes the whole tensor itself."""
    shards, group = Shards(ranks, rank), dist.group.WORLD.group_name  # type: ignore[union-attr]
    heads, text, video = ranks + 1, ranks + 1, 21
    whole = torch.arange(2.0 * heads * (text + video) * 3).reshape(2, heads, text + video, 3)
    for stretches in (((text, True), (video, True)), ((text, False), (video, True)), ((video, True), (text, True))):
        layout = Layout(shards, stretches)
        mine = torch.cat([whole[:, :, place] for place in layout.places(rank)], 2)
        found = tokens_to_heads(mine, layout, mine.shape, group)
        assert torch.equal(found, whole[:, shards.part(heads)])
        assert torch.equal(heads_to_tokens(found, layout, found.shape, heads, group), mine)
    for axis in (0, 1, 2):
        mine = whole.narrow(axis, (own := shards.part(whole.shape[axis])).start, own.stop - own.start)
        assert torch.equal(gather_along(mine, shards, whole.shape[axis], mine.shape, axis, group), whole)


def wan_of_every_strategy(rank: int) -> dict[str, Any]:
    torch.set_grad_enabled(False)
    layers = len(EVERY.layers)  # type: ignore[arg-type]

    def alone() -> tuple[torch.Tensor, Any]:
        model = transform(wan(num_layers=layers), EVERY, **PLAIN)
        return run(model), plans(model)[0].to_dict()

    expected, plan = of_first(rank, alone)
    changed = shared_wan(2, True, EVERY, PLAIN, num_layers=layers)
    return {
        "away": distance(run(changed), expected),
        "rewritten": [plan.rewritten for plan in plans(changed)],
        "plan": plans(changed)[0].to_dict() == plan,
    }


def wan_in_both_orders(rank: int, ranks: int, frames: int) -> list[float]:
    torch.set_grad_enabled(False)
    config = {"num_attention_heads": ranks, "num_layers": 2}
    expected = of_first(rank, lambda: run(transform(wan(**config), ALL, **PLAIN), frames=frames))
    found = []
    for before in (True, False) if ranks == 2 else (True,):
        changed = shared_wan(ranks, before, ALL, PLAIN, **config)
        found += [distance(run(changed, frames=frames), expected), distance(run(changed, frames=frames), expected)]
        if not before:
            try:
                freeloc_fx.restore(changed)
            except TransformError:
                found.append(0.0)
            else:
                found.append(1.0)
    return found


def wan_other_ways(rank: int) -> dict[str, float]:
    """FlexAttention in the graph, heads and tokens that the ranks do not divide, a plan beside the calls."""
    torch.set_grad_enabled(False)
    found = {}
    expected = of_first(rank, lambda: run(transform(wan(), ALL, **PLAIN)))
    flex = shared_wan(2, True, ALL, {"backend": "eager", "attention": "flex"})
    found["flex"] = distance(run(flex), expected)
    model = context_parallel(wan(num_attention_heads=3), ulysses_degree=2, ulysses_anything=True)
    odd = transform(model, ALL, verify=True, **PLAIN)
    config = {"height": 2, "width": 6}
    alone = of_first(rank, lambda: run(transform(wan(num_attention_heads=3), ALL, **PLAIN), frames=11, **config))
    found["odd"] = distance(run(odd, frames=11, **config), alone)
    found["planned"] = float(freeloc_fx.plan(model, ALL, frames=11, height=2, width=6).grid.frames - 11)
    return found


def within_the_trained_length(rank: int, heads: int, size: dict[str, int]) -> list[bool]:
    torch.set_grad_enabled(False)
    options = {"ulysses_degree": 2, "ulysses_anything": heads % 2 > 0}
    own = context_parallel(wan(num_attention_heads=heads), **options)
    changed = transform(context_parallel(wan(num_attention_heads=heads), **options), ALL, **PLAIN)
    found = run(changed, **size)
    group = token_group_of(own)
    assert group is not None
    with gathering(group):  # diffusers' own takes shares of one size on gloo
        return [torch.equal(found, run(own, **size)), plans(changed)[0].rewritten == 0]


def heads_of_no_even_share(rank: int, ranks: int, heads: int, frames: int) -> float:
    torch.set_grad_enabled(False)
    expected = of_first(rank, lambda: run(transform(wan(num_attention_heads=heads), ALL, **PLAIN), frames=frames))
    model = context_parallel(wan(num_attention_heads=heads), ulysses_degree=ranks, ulysses_anything=True)
    return distance(run(transform(model, ALL, **PLAIN), frames=frames), expected)


def other_models(rank: int, name: str, cp_plan: str, options: dict[str, Any], wrong_heads: bool) -> float:
    torch.set_grad_enabled(False)
    profile = Profile(trained_frames=5, layers={0: "vrpr+tsa+temp", 1: "direct"})
    given = arguments(name, build(name), 13)
    shown = {} if "encoder_attention_mask" not in given else {"text_shown": 11}
    given = arguments(name, build(name), 13, **shown) | {"return_dict": False}
    expected = of_first(rank, lambda: transform(build(name), profile, **PLAIN)(**given)[0])
    model = context_parallel(build(name), PLANS[cp_plan]() if cp_plan else None, ulysses_degree=2, **options)
    changed = transform(model, profile, **PLAIN)
    if wrong_heads:
        of_heads = RopeLayout.of_heads
        RopeLayout.of_heads = lambda self, group: of_heads(self, slice(0, group.stop - group.start))  # type: ignore[method-assign]
    return distance(changed(**given)[0], expected)


def joint_within_the_trained_length(rank: int) -> tuple[float, float]:
    """(of the transformed model, of the plain one) from one process: diffusers' processor exchanges nothing."""
    torch.set_grad_enabled(False)
    given = arguments("CogVideoX", build("CogVideoX"), 4) | {"return_dict": False}
    expected = build("CogVideoX")(**given)[0]
    model = context_parallel(build("CogVideoX"), PLANS["text whole"](), ulysses_degree=2)
    changed = transform(model, Profile(trained_frames=5, layers="vrpr"), **PLAIN)
    return distance(changed(**given)[0], expected), distance(model(**given)[0], expected)


def of_one_process(rank: int, make: Callable[[], Any], profile: Profile, given: dict[str, Any]) -> torch.Tensor:
    """What one process makes."""

    def alone() -> torch.Tensor:
        torch.manual_seed(0)
        found: torch.Tensor = transform(make(), profile, **PLAIN)(**given)
        return found

    result: torch.Tensor = of_first(rank, alone)
    return result


def two_ranks() -> Any:
    """The ContextParallelConfig that diffusers sets up."""
    hooked = context_parallel(wan(num_layers=1), ulysses_degree=2, ulysses_anything=True)
    return next(hook.parallel_config for one in hooked.modules() for hook in sharding_hooks(one))


def one_sequence(rank: int, words: int, last: bool, frames: int = 12) -> float:
    """Text and video that are shared out as one, and what becomes of it where nobody can know that."""
    torch.set_grad_enabled(False)
    given, profile = of_words(words, frames), Profile(trained_frames=min(5, frames // 2), layers="vrpr+tsa")
    expected, config = of_one_process(rank, lambda: Words(last), profile, given), two_ranks()
    away = distance(transform(shared_words(config, last), profile, **PLAIN)(**given), expected)
    with pytest.raises(
        CaptureError, match=f"{words} tokens of text and {6 * frames} of video reach its block as one sequence"
    ):
        transform(shared_words(config, last, at_blocks=False), profile, **PLAIN)(**given)
    return away


def joined_in_blocks(rank: int, join: str) -> float:
    torch.set_grad_enabled(False)
    given, profile = of_words(6), Profile(trained_frames=5, layers="vrpr+tsa")
    expected, config = of_one_process(rank, lambda: Apart(join), profile, given), two_ranks()
    return distance(transform(shared_apart(config, join), profile, **PLAIN)(**given), expected)


def refusals(rank: int) -> dict[str, str]:
    """What each way that cannot serve is refused with; a barrier says that no rank is left waiting."""
    torch.set_grad_enabled(False)
    said = {}

    def tried(name: str, model: Any, given: dict[str, Any] | None = None, profile: Profile = ALL) -> None:
        try:
            changed = transform(model, profile, **PLAIN)
            changed(**given) if given else run(changed)
        except CaptureError as error:
            said[name] = str(error)
        else:
            said[name] = "nothing"
        dist.barrier()

    tried("ring", context_parallel(wan(), ring_degree=2))
    cached = context_parallel(wan(), ulysses_degree=2)
    from diffusers import FirstBlockCacheConfig

    cached.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    tried("cache", cached)
    tried("heads", context_parallel(wan(num_attention_heads=1), ulysses_degree=2))
    said["heads, inspected"] = inspected(wan(num_attention_heads=1), (12, 4, 4))
    for name, why in (("HunyuanVideo", "mask"), ("Mochi", "padded")):
        given = arguments(name, build(name), 12, text_shown=9) | {"return_dict": False}
        tried(why, context_parallel(build(name), PLANS[name](), ulysses_degree=2), given)
        said[f"{why}, inspected"] = inspected(build(name), (12, *CASES[name].size))
    half = context_parallel(wan(), ulysses_degree=2)
    from diffusers.hooks.context_parallel import remove_context_parallel

    remove_context_parallel(half, type(half)._cp_plan)
    tried("no hooks", half)
    tried("somebody's own", split_by_hand(rank), {"hidden_states": latents(40)}, Profile(trained_frames=10))
    return said


def inspected(model: Any, size: tuple[int, int, int]) -> str:
    """What `freeloc inspect --ranks 2` says that such a call is refused with."""
    frames, height, width = size
    plan = freeloc_fx.plan(model, ALL, frames=frames, height=height, width=width)
    return str(shares(model, plan, 2)["refused"])


def split_by_hand(rank: int) -> Any:
    """A model whose tokens are shared out by hooks of somebody's own, and exchanged by nobody."""
    model = DiT()

    def share(tables: Any) -> Any:
        return tuple(table.chunk(2, 0)[rank] for table in tables)

    def gather(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(out) for _ in range(2)]
        dist.all_gather(parts, out.contiguous())
        return torch.cat(parts, 1)

    model.blocks[0].register_forward_pre_hook(lambda module, a: (a[0].chunk(2, 1)[rank], share(a[1]), a[2]))
    model.blocks[1].register_forward_pre_hook(lambda module, a: (a[0], share(a[1]), a[2]))
    model.blocks[1].register_forward_hook(gather)
    return model


def inductor(rank: int) -> float:
    torch.set_grad_enabled(False)
    changed = shared_wan(2, True, ALL, {"backend": "inductor", "attention": "tiles"})
    return distance(run(changed), run(transform(wan(), ALL, **PLAIN)))


# What is to come of it


@pytest.mark.parametrize("ranks", [2, 4])
def test_tokens_go_to_heads_and_back(ranks: int) -> None:
    on_ranks(exchanges, ranks, ranks)


@pytest.mark.slow
def test_every_strategy_gives_what_one_process_gives() -> None:
    assert sorted(part for parts in LAYERS for part in parts) == sorted(PARTS)
    for found in on_ranks(wan_of_every_strategy, 2):
        assert found["away"] <= 1e-5
        assert found["rewritten"] == [len(EVERY.layers) - 1]  # type: ignore[arg-type]
        assert found["plan"], "a rank reports the plan of the whole model"


@pytest.mark.parametrize(("ranks", "frames"), [(2, 12), slow(4, 21)])
def test_before_and_after_transform(ranks: int, frames: int) -> None:
    for found in on_ranks(wan_in_both_orders, ranks, ranks, frames):
        assert len(found) == (5 if ranks == 2 else 2) and max(found) <= 1e-5


@pytest.mark.slow
def test_flex_and_what_ranks_do_not_divide() -> None:
    for found in on_ranks(wan_other_ways, 2):
        assert max(map(abs, found.values())) <= 1e-5, found


@pytest.mark.parametrize(
    ("heads", "size"), [(2, {"frames": 4}), (3, {"frames": 4}), slow(3, {"frames": 3, "height": 2, "width": 6})]
)
def test_within_the_trained_length_it_is_bitwise_diffusers_own_run(heads: int, size: dict[str, int]) -> None:
    assert on_ranks(within_the_trained_length, 2, heads, size) == [[True, True]] * 2


@pytest.mark.parametrize(("ranks", "heads", "frames"), [(3, 4, 4), slow(4, 5, 5), slow(3, 4, 12)])
def test_heads_that_diffusers_would_leave_a_rank_without(ranks: int, heads: int, frames: int) -> None:
    """Its own run fills up heads, and stops where a rank got none but such: we do it within the trained length, too."""
    assert not diffusers_takes(heads, ranks, anything=True)
    assert max(on_ranks(heads_of_no_even_share, ranks, ranks, heads, frames)) <= 1e-5


@pytest.mark.parametrize("name", ["LTX", slow("LTX anything"), "text shared", slow("text whole")])
def test_other_models(name: str) -> None:
    case = "LTX" if name.startswith("LTX") else "CogVideoX"
    options = {"ulysses_anything": True} if name in ("LTX anything", "text shared") else {}
    assert max(on_ranks(other_models, 2, case, "" if case == "LTX" else name, options, False)) <= 1e-5


@pytest.mark.parametrize(("words", "last", "frames"), [(6, False, 12), slow(5, True, 12), slow(1, False, 12),
                                                       slow(8, False, 4)])  # fmt: skip
def test_text_and_video_that_are_shared_out_as_one_sequence(words: int, last: bool, frames: int) -> None:
    """The last one has as many tokens a rank as channels a head, where RoPE's own cat is as long as the tokens."""
    assert max(on_ranks(one_sequence, 2, words, last, frames)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("join", ["concatenate", "hstack", "write"])
def test_text_and_video_that_are_shared_out_apart_are_joined_anyhow(join: str) -> None:
    assert max(on_ranks(joined_in_blocks, 2, join)) <= 1e-5


@pytest.mark.slow
def test_the_rates_of_the_wrong_heads_show() -> None:
    assert max(on_ranks(other_models, 2, "LTX", "", {}, True)) > 1e-3


def test_a_joint_model_is_right_where_its_own_processor_is_not() -> None:
    for ours, own in on_ranks(joint_within_the_trained_length, 2):
        assert ours <= 1e-5
        assert own > 1e-2, "diffusers exchanges by itself now: within the trained length its own run may serve"


def test_what_cannot_serve_is_refused_on_every_rank() -> None:
    first, second = on_ranks(refusals, 2)
    expected = {
        "ring": "ring_degree=2",
        "cache": "disable_cache",
        "heads": "found 1 heads for 2 ranks",
        "mask": "padding is hidden by a mask over all",
        "padded": "the number of its tokens depends on data",
        "no hooks": "no hook shares them out",
        "somebody's own": "20 latent frames of 16 tokens, the model's input has 40 of 4 x 4",
    }
    looked_at = [name for name in first if name.endswith(", inspected")]
    assert first.keys() == second.keys() == {*expected, *looked_at}
    for name, words in expected.items():
        assert words in first[name] and words in second[name], name
    for name in looked_at:
        assert first[name] == second[name] == first[name.removesuffix(", inspected")], "known before anything is called"
    assert len(looked_at) == 3


@pytest.mark.slow
def test_inductor() -> None:
    assert max(on_ranks(inductor, 2, limit=300)) <= 1e-5
