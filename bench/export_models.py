"""The last stage of training: a pipeline folder as the package ships it, with the recipe and its curves."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoints import read_part
from safetensors.torch import load_file
from text_to_video import FRAMES, TextToVideo, make_tokenizer
from torch import nn
from train_dit import load_vae

from freeloc_fx.files import save_figure, write_text
from freeloc_fx.generation import tiny_wan

__all__ = ["export"]


def export(args: argparse.Namespace) -> Path:
    """Write the averages of --work's last checkpoints.

    Returns:
        The folder.

    Raises:
        ValueError: no transformer was trained in --work.
    """
    found = {name: read_part(args.work / f"{args.model}-{name}", "average") for name in ("short", "dit")}
    trained = found["dit"] or found["short"]
    if trained is None:
        raise ValueError(f"{args.work}: expected a checkpoint in {args.model}-dit or {args.model}-short")
    tokenizer = make_tokenizer()
    vae, _, mean, std = load_vae(args, torch.device("cpu"))
    model = _model(args, len(tokenizer), vae.config.z_dim)
    model.load_state_dict(trained[0])
    model.half()
    out = args.out or args.work / args.model
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    (_tiny_wan if args.model == "tiny-wan" else _tiny_joint)(out, model, tokenizer, vae.half())
    for path in out.glob("*/config.json"):  # diffusers writes where on this machine a model was read from
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.pop("_name_or_path", None) is not None:
            write_text(path, json.dumps(known, indent=2, sort_keys=True) + "\n")
    recipe: dict[str, Any] = {
        "command": f"python bench/train.py --model {args.model}",
        "seed": args.seed,
        "torch": torch.__version__,
        "frames": FRAMES,
    }
    autoencoder = read_part(args.work / "vae", "average") if args.model == "tiny-wan" else None
    for name, part in {"vae": autoencoder, **found}.items():
        if part is not None:
            recipe[name] = {"steps": part[1].step, "curve": part[1].curve}
    path = args.work / f"train_{args.model.replace('-', '_')}.json"
    write_text(path, json.dumps(recipe) + "\n")
    draw_curves(recipe, path.with_suffix(".png"))
    return out


def _model(args: argparse.Namespace, words: int, channels: int) -> nn.Module:
    if args.model == "tiny-wan":
        return TextToVideo(args, words, channels)
    from joint_text_to_video import JointTextToVideo

    return JointTextToVideo(args, words, channels)


def _scheduler() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )


def _tiny_wan(out: Path, model: nn.Module, tokenizer: Any, vae: nn.Module) -> None:
    from diffusers import WanPipeline

    pipe = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=model.text_encoder,
        vae=vae,
        scheduler=_scheduler(),
        transformer=model.transformer,
    )
    pipe.save_pretrained(out, safe_serialization=True)


def _tiny_joint(out: Path, model: nn.Module, tokenizer: Any, vae: nn.Module) -> None:
    """The pipeline's parts; a folder without a VAE gets the embedded tiny-wan's, so that it needs none but another."""
    import diffusers

    index = {
        "_class_name": "TinyJointPipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    model.transformer.save_pretrained(out / "transformer", safe_serialization=True)
    model.text_encoder.save_pretrained(out / "text_encoder", safe_serialization=True)
    tokenizer.save_pretrained(out / "tokenizer")
    _scheduler().save_pretrained(out / "scheduler")
    if not _is_embedded(vae):
        vae.save_pretrained(out / "vae", safe_serialization=True)
    write_text(out / "model_index.json", json.dumps(index, indent=2) + "\n")


def _is_embedded(vae: nn.Module) -> bool:
    """Whether a float16 VAE is the one that the package ships."""
    (path,) = (Path(tiny_wan.path()) / "vae").glob("*.safetensors")
    shipped, own = load_file(path), vae.state_dict()
    return shipped.keys() == own.keys() and all(torch.equal(own[name], value) for name, value in shipped.items())


def draw_curves(recipe: dict[str, Any], path: Path) -> None:
    """Plot what each stage measured on held-out clips."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = {
        "vae": ("psnr", "VAE", "PSNR of held-out clips, dB"),
        "short": ("validation", "DiT, 3 latent frames", "loss on held-out clips"),
        "dit": ("validation", "DiT, 21 latent frames", "loss on held-out clips"),
    }
    parts = [name for name in shown if name in recipe]
    figure, axes = plt.subplots(1, len(parts), figsize=(4.2 * len(parts), 3), constrained_layout=True, squeeze=False)
    for axis, name in zip(axes[0], parts, strict=True):
        column, title, label = shown[name]
        rows = np.array([[row["step"], row[column]] for row in recipe[name]["curve"]]).reshape(-1, 2)
        axis.plot(rows[:, 0], rows[:, 1])
        axis.set(title=title, xlabel="step", ylabel=label)
    save_figure(figure, path, dpi=100)
    plt.close(figure)
