"""Private names of diffusers and accelerate that this library uses: the VAE, context parallelism, hooks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from models import wan
from ranks import context_parallel, on_ranks
from test_compat import there
from torch import nn

from freeloc_fx import compat, compat_diffusers

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
    assert compat_diffusers.wan_frames(vae) == 4


def test_wan_decode_piece(vae: Any) -> None:
    from diffusers.models.autoencoders import autoencoder_kl_wan

    there(hasattr(autoencoder_kl_wan, "unpatchify"), "autoencoder_kl_wan.unpatchify", "diffusers")
    there(callable(getattr(vae, "clear_cache", None)), "AutoencoderKLWan.clear_cache", "diffusers")
    vae.clear_cache()
    there(hasattr(vae, "_feat_map"), "AutoencoderKLWan._feat_map", "diffusers")
    cache = compat_diffusers.wan_cache(vae)
    assert cache and cache is not compat_diffusers.wan_cache(vae) and set(cache) == {None}
    taken = inspect.signature(vae.decoder.forward).parameters
    for name in ("feat_cache", "feat_idx", "first_chunk"):
        there(name in taken, f"AutoencoderKLWan.decoder(..., {name}=)", "diffusers")
    with torch.no_grad():
        hidden = vae.post_quant_conv(torch.randn(1, 4, 1, 2, 2))
        first = compat_diffusers.wan_decode_piece(vae, hidden, cache, first_chunk=True)
        assert first.shape == (1, 12, 1, 8, 8), "in patches"
        assert compat_diffusers.wan_decode_piece(vae, hidden, cache).shape == (1, 12, 4, 8, 8)
    vae.clear_cache()


# torch.distributed, and diffusers' context parallelism


def shared_out(rank: int) -> dict[str, Any]:
    model = context_parallel(wan(), ulysses_degree=2)
    hooks = {path: compat_diffusers.sharding_hooks(module) for path, module in model.named_modules()}
    found = {path: [type(hook.metadata).__name__ for hook in those] for path, those in hooks.items() if those}
    config = hooks["blocks.0"][0].parallel_config
    processor = getattr(model.blocks[0].attn1.processor, compat_diffusers.PARALLEL)
    name, ranks, own = compat_diffusers.token_group(config)
    sent = torch.tensor([10.0 * rank, 10.0 * rank + 1, 10.0 * rank + 2])
    return {
        "hooks": found,
        "same": processor.context_parallel_config is config and getattr(model, compat_diffusers.PARALLEL) is processor,
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

    there(hasattr(diffusers.ModelMixin, compat_diffusers.SHARING_PLAN), "ModelMixin._cp_plan", "diffusers")
    plan = getattr(diffusers.WanTransformer3DModel, compat_diffusers.SHARING_PLAN, None)
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


# diffusers and accelerate: hooks


class Plain(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_diffusers_hooks() -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    module, hook = Plain(), ModelHook()
    assert compat_diffusers.diffusers_hooks(module) == {}
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "mine")
    there(
        compat_diffusers.HOOK_REGISTRY in vars(module),
        f"{compat_diffusers.HOOK_REGISTRY} of a module with hooks",
        "diffusers",
    )
    found = compat_diffusers.diffusers_hooks(module)
    there(isinstance(found, Mapping) and found.get("mine") is hook, "HookRegistry.hooks", "diffusers")


def test_the_call_inside_diffusers_hooks() -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    class Doubles(ModelHook):
        def new_forward(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = 2 * self.fn_ref.original_forward(x)
            return result

    module = Plain()
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(hook := Doubles(), "doubles")
    there(bool(getattr(registry, "_fn_refs", None)), "HookRegistry._fn_refs", "diffusers")
    there(hasattr(registry._fn_refs[0], "original_forward"), "HookFunctionReference.original_forward", "diffusers")
    there(hasattr(registry._fn_refs[0], "forward"), "HookFunctionReference.forward", "diffusers")
    there(registry._fn_refs == [hook.fn_ref], "ModelHook.fn_ref, what the registry holds for it", "diffusers")
    owner, name = compat_diffusers.call_inside_hooks(module)
    setattr(owner, name, lambda x: x + 10)
    there(module(torch.ones(1)).item() == 22, f"HookFunctionReference.{name} as what a hook runs", "diffusers")


@pytest.mark.parametrize("name", compat_diffusers.HOOK_NAMES)
def test_by_which_attributes_hooks_are_known(name: str) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module
    from diffusers.hooks import HookRegistry

    module = Plain()
    add_hook_to_module(module, ModelHook())
    HookRegistry.check_if_exists_or_initialize(module)
    there(name in vars(module), f"{name} of a module with hooks", "diffusers")


def test_accelerate_hook() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    module, hook = Plain(), ModelHook()
    assert compat_diffusers.accelerate_hook(module) is None
    add_hook_to_module(module, hook)
    there(compat_diffusers.accelerate_hook(module) is hook, "_hf_hook of a module with a hook", "accelerate")
    there("_old_forward" in vars(module), "_old_forward of a module with a hook", "accelerate")
    owner, name = compat_diffusers.call_inside_hooks(module)
    assert (owner, name) == (module, "_old_forward")
    setattr(owner, name, lambda x: x + 10)
    there(module(torch.ones(1)).item() == 11, "_old_forward as what a hook runs", "accelerate")


def test_a_module_without_hooks_is_called_by_its_compiled_call() -> None:
    module = Plain()
    assert compat_diffusers.call_inside_hooks(module) == (module, compat.COMPILED_CALL)


def test_hooks_that_keep_results() -> None:
    from diffusers.hooks import ModelHook
    from diffusers.hooks.first_block_cache import FBCBlockHook, FBCHeadBlockHook

    there(hasattr(ModelHook, "_is_stateful"), "ModelHook._is_stateful", "diffusers")
    there(FBCHeadBlockHook._is_stateful is True, "FBCHeadBlockHook._is_stateful", "diffusers")
    assert not compat_diffusers.keeps_results(ModelHook())
    taken = inspect.signature(FBCBlockHook.__init__).parameters
    there("state_manager" in taken, "FBCBlockHook.state_manager, shared with the hook of the first block", "diffusers")
