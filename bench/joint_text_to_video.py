"""What the training changes of tiny-joint: its transformer of HunyuanVideo's kind with its text encoder."""

from __future__ import annotations

import argparse

import torch
from joint_from_wan import copy_blocks
from text_to_video import make_text_encoder, spread_layers
from torch import nn
from training_attention import use

DUAL = 2  # blocks with a stream of their own for text; the others have one stream
LAYERS = 8


def dit_config(args: argparse.Namespace, channels: int) -> dict:
    """Temporal pairs get 12 of 32 channels, as tiny-wan's do; theta is HunyuanVideo's own."""
    return {
        "in_channels": channels,
        "out_channels": channels,
        "num_attention_heads": args.heads,
        "attention_head_dim": 32,
        "num_layers": DUAL,
        "num_single_layers": (args.layers or LAYERS) - DUAL,
        "num_refiner_layers": 1,
        "mlp_ratio": 3.0,
        "patch_size": 2,
        "patch_size_t": 1,
        "qk_norm": "rms_norm",
        "guidance_embeds": False,
        "text_embed_dim": 128,
        "pooled_projection_dim": 128,
        "rope_theta": 256.0,
        "rope_axes_dim": (12, 10, 10),
    }


def start_from_wan(model: nn.Module, wan: nn.Module) -> None:
    """Fill the video blocks from those of a transformer of tiny-wan's kind, spread evenly over its layers."""
    count = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    copy_blocks(model, wan, spread_layers(count, wan.config.num_layers))


class JointTextToVideo(nn.Module):
    """The transformer with its text encoder: what `train_dit.DitStage` trains.

    Args:
        args: of `train.py`.
        vocab_size: tokens of the tokenizer.
        channels: of the latents.
    """

    def __init__(self, args: argparse.Namespace, vocab_size: int, channels: int) -> None:
        super().__init__()
        from diffusers import HunyuanVideoTransformer3DModel

        self.transformer = HunyuanVideoTransformer3DModel(**dit_config(args, channels))
        self.text_encoder = make_text_encoder(vocab_size)
        nn.init.zeros_(self.transformer.proj_out.weight)

    def prepare_training(self, device: torch.device) -> None:
        from diffusers.models.transformers import transformer_hunyuan_video

        use(transformer_hunyuan_video, device)

    def video_blocks(self) -> list[nn.Module]:
        """The blocks that video tokens go through, in order."""
        return [*self.transformer.transformer_blocks, *self.transformer.single_transformer_blocks]

    def matrices(self) -> list[nn.Parameter]:
        """What Muon takes: the matrices of the blocks but the modulations, which are read one row at a time."""
        model = self.transformer
        refiner = model.context_embedder.token_refiner.refiner_blocks
        blocks = nn.ModuleList([*self.video_blocks(), *refiner])
        return [p for name, p in blocks.named_parameters() if p.ndim == 2 and ".norm" not in name]

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        text = self.text_encoder(ids, mask).last_hidden_state
        weight = mask[..., None].to(text.dtype)
        pooled = (text * weight).sum(1) / weight.sum(1)
        return self.transformer(z_t, t, text, mask, pooled, return_dict=False)[0]
