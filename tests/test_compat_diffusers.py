"""Private names of diffusers' VAE and of its context parallelism that this library uses."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import wan
from ranks import context_parallel, on_ranks
from test_compat import there

from freeloc_fx import compat

# diffusers: AutoencoderKLWan


@pytest.fixture(scope="module")
def vae() -> Any:
    from diffusers import AutoencoderKLWan

    cls: Any = AutoencoderKLWan
    torch.manual_seed(0)
    return cls(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True], in_channels=12,
        out_channels=12, patch_size=2, scale_factor_spatial=8, latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip


def test_wan_frames(vae: Any) -> None:
    there(hasattr(vae, "temperal_downsample"), "AutoencoderKLWan.temperal_downsample", "diffusers")
    assert compat.wan_frames(vae) == 4


def test_wan_decode_piece(vae: Any) -> None:
    from diffusers.models.autoencoders import autoencoder_kl_wan

    there(hasattr(autoencoder_kl_wan, "unpatchify"), "autoencoder_kl_wan.unpatchify", "diffusers")
    there(callable(getattr(vae, "clear_cache", None)), "AutoencoderKLWan.clear_cache", "diffusers")
    vae.clear_cache()
    there(hasattr(vae, "_feat_map"), "AutoencoderKLWan._feat_map", "diffusers")
    cache = compat.wan_cache(vae)
    assert cache and cache is not compat.wan_cache(vae) and set(cache) == {None}
    taken = inspect.signature(vae.decoder.forward).parameters
    for name in ("feat_cache", "feat_idx", "first_chunk"):
        there(name in taken, f"AutoencoderKLWan.decoder(..., {name}=)", "diffusers")
    with torch.no_grad():
        hidden = vae.post_quant_conv(torch.randn(1, 4, 1, 2, 2))
        first = compat.wan_decode_piece(vae, hidden, cache, first_chunk=True)
        assert first.shape == (1, 12, 1, 8, 8), "in patches"
        assert compat.wan_decode_piece(vae, hidden, cache).shape == (1, 12, 4, 8, 8)
    vae.clear_cache()


# torch.distributed, and diffusers' context parallelism


def shared_out(rank: int) -> dict[str, Any]:
    model = context_parallel(wan(), ulysses_degree=2)
    hooks = {path: compat.sharding_hooks(module) for path, module in model.named_modules()}
    found = {path: [type(hook.metadata).__name__ for hook in those] for path, those in hooks.items() if those}
    config = hooks["blocks.0"][0].parallel_config
    processor = getattr(model.blocks[0].attn1.processor, compat.PARALLEL)
    name, ranks, own = compat.token_group(config)
    sent = torch.tensor([10.0 * rank, 10.0 * rank + 1, 10.0 * rank + 2])
    return {
        "hooks": found,
        "same": processor.context_parallel_config is config and getattr(model, compat.PARALLEL) is processor,
        "ring": config.ring_degree,
        "group": (ranks, own),
        "received": compat.all_to_all(sent, [2, 2] if rank == 0 else [1, 1], [2, 1], name).tolist(),
        "world": name == dist.group.WORLD.group_name or ranks == dist.get_world_size(),  # type: ignore[union-attr]
    }


def test_what_context_parallelism_leaves_on_a_model() -> None:
    first, second = on_ranks(shared_out, 2)
    for found in (first, second):
        there(set(found["hooks"]) == {"", "rope", "blocks.0", "proj_out"}, "hooks with a parallel_config", "diffusers")
        there(found["hooks"]["proj_out"] == ["list"], "ContextParallelGatherHook.metadata, a list", "diffusers")
        there(found["hooks"]["rope"] == ["dict"], "ContextParallelSplitHook.metadata, a mapping", "diffusers")
        there(found["same"], "_parallel_config of a model and its processors", "diffusers")
        assert found["ring"] == 1 and found["world"]
    assert (first["group"], second["group"]) == ((2, 0), (2, 1))
    assert first["received"] == [0.0, 1.0, 10.0, 11.0] and second["received"] == [2.0, 12.0]


def test_which_classes_come_with_a_plan_for_sharing_tokens() -> None:
    import diffusers

    there(hasattr(diffusers.ModelMixin, compat.SHARING_PLAN), "ModelMixin._cp_plan", "diffusers")
    plan = getattr(diffusers.WanTransformer3DModel, compat.SHARING_PLAN, None)
    there(isinstance(plan, dict), "WanTransformer3DModel._cp_plan", "diffusers")
    states = plan["blocks.0"]["hidden_states"]  # type: ignore[index]
    there((states.split_dim, states.expected_dims) == (1, 3), "ContextParallelInput.split_dim, .expected_dims")


def test_shares_of_any_sizes_are_gathered_by_a_method_of_this_name() -> None:
    from diffusers.hooks import context_parallel as module

    sharder = getattr(module, "PartitionAnythingSharder", None)
    there(hasattr(sharder, "unshard_anything"), "PartitionAnythingSharder.unshard_anything", "diffusers")
    taken = list(inspect.signature(sharder.unshard_anything).parameters)  # type: ignore[union-attr]
    there(
        taken == ["tensor", "dim", "mesh"], "PartitionAnythingSharder.unshard_anything(tensor, dim, mesh)", "diffusers"
    )


def test_set_example_value() -> None:
    node = torch.fx.Graph().placeholder("x")
    compat.set_example_value(node, torch.ones(2, 3))
    assert compat.example_value(node).shape == (2, 3)
