"""Train tiny-joint, the embedded model with joint text attention, on tiny-wan's clips, VAE and latents.

    python bench/train_tiny_wan.py latents  # once: the latents that tiny-wan learns from too
    python bench/train_tiny_joint.py short  # 1. HunyuanVideoTransformer3DModel and UMT5 encoder on three latent frames
    python bench/train_tiny_joint.py dit    # 2. then on whole clips of 21 latent frames
    python bench/train_tiny_joint.py export # 3. freeloc_fx/tiny_joint/model, float16 safetensors

The recipe, batches, noise and resuming are those of tiny-wan (`text_to_video.py`); the model is what differs. Only the
transformer and its text encoder are trained and written, with the tokenizer; the VAE is tiny-wan's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from joint_from_wan import copy_blocks
from text_to_video import (
    FRAMES,
    Z_DIM,
    Checkpoint,
    clock,
    draw_curves,
    load_latents,
    make_text_encoder,
    make_tokenizer,
    train_dit,
)
from torch import nn

from freeloc_fx.files import write_text

LONGEST = 21  # tokens of the longest prompt of the grammar and one of padding, so that every text has a masked key


def dit_config(args: argparse.Namespace) -> dict:
    """Temporal pairs get 12 of 32 channels, as tiny-wan's do; theta is HunyuanVideo's own."""
    return {
        "in_channels": Z_DIM,
        "out_channels": Z_DIM,
        "num_attention_heads": args.heads,
        "attention_head_dim": 32,
        "num_layers": args.layers,
        "num_single_layers": args.single_layers,
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


def start_from_wan(model: nn.Module) -> None:
    from diffusers import WanTransformer3DModel

    from freeloc_fx.generation import tiny_wan

    wan = WanTransformer3DModel.from_pretrained(tiny_wan.path(), subfolder="transformer", torch_dtype=torch.float32)
    count = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    last = wan.config.num_layers - 1
    copy_blocks(model, wan, [round(i * last / (count - 1)) for i in range(count)])


class JointTextToVideo(nn.Module):
    """The transformer with its text encoder: what `text_to_video.train_dit` trains."""

    def __init__(self, args: argparse.Namespace, vocab_size: int) -> None:
        super().__init__()
        from diffusers import HunyuanVideoTransformer3DModel

        self.transformer = HunyuanVideoTransformer3DModel(**dit_config(args))
        self.text_encoder = make_text_encoder(vocab_size)
        if args.start:
            start_from_wan(self.transformer)
        else:
            nn.init.zeros_(self.transformer.proj_out.weight)

    def prepare_training(self) -> None:
        """Nothing: it trains as the pipeline runs it."""

    def matrices(self) -> list[nn.Parameter]:
        """What Muon takes: the matrices of the blocks but the modulations, which are read one row at a time."""
        model = self.transformer
        refiner = model.context_embedder.token_refiner.refiner_blocks
        blocks = nn.ModuleList([*model.transformer_blocks, *model.single_transformer_blocks, *refiner])
        return [p for name, p in blocks.named_parameters() if p.ndim == 2 and ".norm" not in name]

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ids, mask = ids[:, :LONGEST], mask[:, :LONGEST]
        text = self.text_encoder(ids, mask).last_hidden_state
        weight = mask[..., None].to(text.dtype)
        pooled = (text * weight).sum(1) / weight.sum(1)
        return self.transformer(z_t, t, text, mask, pooled, return_dict=False)[0]


def index() -> dict:
    """The pipeline's parts; the folder lacks the VAE, which is tiny-wan's."""
    import diffusers

    return {
        "_class_name": "TinyJointPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }


def export(args: argparse.Namespace) -> None:
    from diffusers import UniPCMultistepScheduler

    from freeloc_fx.generation import tiny_wan

    z, mean, std, _ = load_latents(args)
    vae = json.loads((tiny_wan.path() / "vae/config.json").read_text())
    # tiny-wan's folder says how its latents are normalised; a model trained otherwise would not fit it.
    for key, value in (("latents_mean", mean), ("latents_std", std)):
        torch.testing.assert_close(torch.tensor(vae[key]), value, atol=1e-4, rtol=1e-4)
    tokenizer = make_tokenizer()
    vocabulary = len(tokenizer)
    args.start = False  # the checkpoint holds every weight
    model, ema = JointTextToVideo(args, vocabulary), JointTextToVideo(args, vocabulary)
    stages = {}
    for stage in ("short", "dit"):
        path = args.work / f"{stage}.safetensors"
        if path.exists():
            steps, curve = Checkpoint(path, model, (), ema).load()
            stages[stage] = {"steps": steps, "curve": {"columns": ["step", "loss"], "rows": curve}}
    if not stages:
        raise SystemExit(f"no checkpoint in {args.work}: expected short.safetensors or dit.safetensors")
    stages.get("short", {}).update(frames=3, batch=args.short_batch)
    stages.get("dit", {}).update(frames=21, batch=args.batch)
    ema.half()
    ema.transformer.save_pretrained(args.out / "transformer", safe_serialization=True)
    ema.text_encoder.save_pretrained(args.out / "text_encoder", safe_serialization=True)
    tokenizer.save_pretrained(args.out / "tokenizer")
    scheduler = UniPCMultistepScheduler.from_pretrained(tiny_wan.path(), subfolder="scheduler")
    scheduler.save_pretrained(args.out / "scheduler")
    write_text(args.out / "model_index.json", json.dumps(index(), indent=2) + "\n")
    recipe = {
        "command": "python bench/train_tiny_joint.py {short,dit,export}, latents by train_tiny_wan.py",
        "seed": args.seed,
        "torch": torch.__version__,
        "clips": len(z),
        "notes": args.notes,
        "frames": FRAMES,
        "learning_rate": args.dit_lr,
        "muon": args.muon,
        **stages,
    }
    args.recipe.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.recipe, json.dumps(recipe) + "\n")
    draw_curves(recipe, args.recipe.with_suffix(".png"))


def main() -> None:
    root = Path(__file__).parents[1]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["short", "dit", "export"])
    parser.add_argument("--work", type=Path, default=Path("train-tiny-joint"), help="checkpoints")
    parser.add_argument("--latents", type=Path, default=Path("train-tiny-wan"), help="folder of tiny-wan's latents")
    parser.add_argument("--out", type=Path, default=root / "freeloc_fx/tiny_joint/model")
    parser.add_argument("--recipe", type=Path, default=root / "bench/results/train_tiny_joint.json")
    parser.add_argument("--notes", nargs="*", default=[], help="what a reader of the recipe must know besides")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short-steps", type=int, default=700)
    parser.add_argument("--short-batch", type=int, default=40)
    parser.add_argument("--until", type=clock, help="HH:MM today: anneal to the end by then, instead of --*-steps")
    parser.add_argument("--ema-decay", type=float, default=0.995, help="half of tiny-wan's memory: fewer steps")
    parser.add_argument("--dit-steps", type=int, default=1400)
    parser.add_argument("--dit-lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2, help="blocks with a stream of their own for text")
    parser.add_argument("--single-layers", type=int, default=6, help="blocks with one stream")
    parser.add_argument("--start", action=argparse.BooleanOptionalAction, default=True, help="from tiny-wan's blocks")
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--muon", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="default: where the CPU has it")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    args = parser.parse_args()
    args.dit_init = None
    args.work.mkdir(parents=True, exist_ok=True)
    if args.bf16 is None:
        args.bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if args.stage == "export":
        export(args)
    else:
        train_dit(args, JointTextToVideo)


if __name__ == "__main__":
    main()
