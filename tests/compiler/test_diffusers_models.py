"""Every video transformer class of diffusers, by inference from its graph alone."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from answers import distance, run
from diffusers_models import CASES, Case, arguments, build
from literal import attention, literal
from slow import slow
from spelled import spelled

import freeloc_fx
from freeloc_fx import Profile, passes, plans, transform
from freeloc_fx.errors import CaptureError, LengthError

TRAINED = 5
PROFILE = Profile(trained_frames=TRAINED, layers="vrpr+tsa")
pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")


# Beside another class of the same family, whose blocks are built as theirs are.
SLOW = (
    "LTX2",
    "LTX2 split",
    "Wan I2V",
    "WanAnimate",
    "WanVACE",
    "ChronoEdit",
    "ConsisID",
    "HunyuanVideo15",
    "JoyImageEditPlus",
    "Kandinsky6",
)


@pytest.fixture(params=[slow(name) if name in SLOW else name for name in CASES])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_sites_rope_grid_and_length(name: str) -> None:
    """What is found, that nothing changes within the trained length, and what comes out beyond it."""
    case = _case(name)
    model = build(name, case=case)
    long = 2 * TRAINED
    given = arguments(name, model, long * case.patch[0], text_shown=11)
    changed = transform(model, PROFILE, backend="eager", attention="reference")
    found = run(changed, given)
    (plan,) = plans(changed)

    assert [site.path for site in plan.sites] == list(case.sites)
    heights = case.size[0] // case.patch[1], case.size[1] // case.patch[2]
    for site in plan.sites:
        assert (site.grid.frames, site.grid.height, site.grid.width) == (long, *heights)
        assert (site.grid.text_first, site.grid.text_last) == case.text
        assert {b - a for a, b in zip(site.rope.first, site.rope.second, strict=True)} == _steps(name, site.head_dim)
        if case.omega is not None:
            assert len(site.rope.omega) == 1
            assert np.allclose(site.rope.omega[0], case.omega(), atol=2e-6)
    assert plan.rewritten == len(case.sites)

    with attention(spelled(plan, F.scaled_dot_product_attention, case.branches)):
        expected = run(model, given)
    assert distance(found, expected) <= 1e-4
    assert distance(run(model, given), expected) > 1e-3, "the strategy does not show in the output"

    short = arguments(name, model, TRAINED * case.patch[0])
    assert torch.equal(run(changed, short), run(model, short))
    assert plans(changed)[-1].rewritten == 0


def _case(name: str) -> Case:
    """SanaWM with one layer of each of its two kinds: they loop over frames, and each takes seconds to be traced."""
    case = CASES[name]
    if name != "SanaWM":
        return case
    return replace(
        case, config={**case.config, "num_layers": 2, "chunk_plucker_post_attn_blocks": 2}, sites=case.sites[:1]
    )


def _steps(name: str, head_dim: int) -> set[int]:
    """Distance between the channels of a pair."""
    if CASES[name].pairing == "interleaved":
        return {1}
    # Allegro turns each axis on its own, MiniMax-H3 24 channels of 32.
    return {{"Allegro": head_dim // 6, "MiniMax-H3": 12}.get(name, head_dim // 2)}


# Rates that differ from head to head


def test_rates_of_a_learned_table() -> None:
    """Every pair mixes time, height and width; its rate is what the table says for time."""
    model = build("Mochi")
    plan = freeloc_fx.plan(model, PROFILE, frames=6, height=4, width=6)
    expected = model.pos_frequencies[0].detach().numpy()
    assert np.allclose(plan.sites[0].rope.omega, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["LTX", slow("LTX2"), "LTX2 split"])
def test_rates_where_axes_take_turns(name: str) -> None:
    """Pairs go to time, height and width in turn across all heads; rates are known up to whole turns per frame."""
    model = build(name)
    plan = freeloc_fx.plan(model, PROFILE, frames=8, height=2, width=3)
    site = plan.sites[0]
    channels = site.heads * site.head_dim
    count = channels // 6
    seconds = 8 / 25 if name == "LTX" else 8 / 24
    rates = math.pi / 2 * 1e4 ** (np.arange(count) / (count - 1)) * 2 * seconds / 20
    whole = np.zeros(channels // 2)
    whole[channels // 2 - 3 * count :: 3] = rates  # what is left over stands unturned in front
    found = np.zeros((site.heads, site.head_dim // 2))
    pair = {a: i for i, a in enumerate(site.rope.first)}
    step = site.rope.second[0] - site.rope.first[0]
    starts = range(0, site.head_dim, 2) if step == 1 else range(site.head_dim // 2)
    for place, channel in enumerate(starts):
        if channel in pair:
            for h in range(site.heads):
                found[h, place] = site.rope.omega[h % len(site.rope.omega)][pair[channel]]
    gap = np.angle(np.exp(1j * (found.ravel() - whole)))
    assert np.abs(gap).max() <= 2e-3


def test_text_may_be_padded_differently_from_call_to_call() -> None:
    """The number of valid text tokens is data: no new capture, and padding stays out."""
    for name in ("HunyuanVideo", "Mochi"):
        torch._dynamo.reset()
        model = build(name)
        changed = transform(model, PROFILE, backend="eager", attention="reference")
        outputs = []
        for shown in (16, 9, 3):
            given = arguments(name, model, 10, text_shown=shown)
            outputs.append(run(changed, given))
            with attention(literal(plans(changed)[0], F.scaled_dot_product_attention)):
                assert distance(outputs[-1], run(model, given)) <= 1e-4
        assert len(plans(changed)) == 1
        assert distance(outputs[0], outputs[1]) > 1e-4


def test_two_prompts_of_unlike_length_in_one_batch() -> None:
    model = build("Mochi")
    changed = transform(model, PROFILE, backend="eager", attention="reference")
    given = arguments("Mochi", model, 10)
    both = {k: torch.cat([v, v]) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
    both["encoder_attention_mask"] = both["encoder_attention_mask"].clone()
    both["encoder_attention_mask"][1, 5:] = 0
    found = run(changed, both)
    for index in range(2):
        one = {k: v[index : index + 1] if isinstance(v, torch.Tensor) else v for k, v in both.items()}
        assert distance(found[index : index + 1], run(changed, one)) <= 1e-5


# Models without a single graph


def test_blocks_are_captured_one_by_one_and_the_original_stays() -> None:
    model = build("HunyuanVideo15")
    changed = transform(model, Profile(trained_frames=5, layers={1: "vrpr"}), backend="eager", attention="reference")
    given = arguments("HunyuanVideo15", model, 10)
    before = run(model, given)
    found = run(changed, given)
    (plan,) = plans(changed)
    assert [s.strategy.name for s in plan.sites] == ["direct", "vrpr"], "each block has a strategy of its own"
    assert distance(found, before) > 1e-4
    assert torch.equal(run(model, given), before)
    assert all(block._compiled_call_impl is None for block in model.transformer_blocks)
    assert torch.equal(run(changed, given), found)
    assert len(plans(changed)) == 1


def test_a_plan_needs_no_run_of_the_blocks() -> None:
    model = build("HunyuanVideo15")
    plan = freeloc_fx.plan(model, PROFILE, frames=10, height=2, width=3)
    assert [site.path for site in plan.sites] == list(CASES["HunyuanVideo15"].sites)


def test_no_library_file_names_a_class() -> None:
    """What is known of a model comes from its graph, its configuration and its arguments."""
    import diffusers

    names = [n for n in dir(diffusers) if re.search(r"(Transformer|Transformer3D|Transformer2D)\w*Model$", n)]
    assert len(names) > 30
    files = [*Path(freeloc_fx.__file__).parent.rglob("*.py"), *Path(passes.__file__).parent.rglob("*.py")]
    assert len(files) > 60
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not [n for n in names if re.search(rf"\b{n}\b", text)], file


# Refusals


def test_blockwise_causal_attention_is_refused() -> None:
    case = replace(CASES["SkyReelsV2"], config=CASES["SkyReelsV2"].config | {"num_frame_per_block": 2})
    model = build("SkyReelsV2", case=case)
    with pytest.raises(CaptureError, match=r"blocks\.0\.attn1: other: .*mask.*autoregressive"):
        freeloc_fx.plan(model, PROFILE, frames=10, height=4, width=6)


def test_linear_attention_is_refused() -> None:
    import diffusers

    config = {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
        "caption_channels": 16, "sample_size": 4, "rope_max_seq_len": 32,
    }  # fmt: skip
    model = diffusers.SanaVideoTransformer3DModel(**config).eval()
    with pytest.raises(CaptureError, match="no video self-attention with temporal RoPE"):
        freeloc_fx.plan(model, PROFILE, frames=10, height=4, width=6)


@pytest.mark.parametrize(
    ("name", "size", "limit"),
    [
        ("Cosmos", (40, 4, 6), "40 latent frames need 40 positions, the model's max_size is 32"),
        ("Kandinsky5", (129, 4, 6), "129 latent frames need 129 positions, .*visual_rope_embeddings.max_pos is 128"),
        ("Wan", (65, 4, 6), "65 latent frames need 65 positions, the model's rope_max_seq_len is 64"),
    ],
)
def test_lengths_that_the_models_tables_cannot_hold(name: str, size: tuple[int, int, int], limit: str) -> None:
    model = build(name)
    with pytest.raises(LengthError, match=limit):
        freeloc_fx.plan(model, PROFILE, frames=size[0], height=size[1], width=size[2])
    changed = transform(model, PROFILE, backend="eager")
    with pytest.raises(LengthError, match=limit):
        changed(**arguments(name, model, size[0]))
