"""The later stages of training: transformer and text encoder, by flow matching on clips encoded as it goes."""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F
from checkpoints import read_part
from teaching import Watched, distance, read_teacher
from text_to_video import (
    FRAMES,
    TEXT_LENGTH,
    TextToVideo,
    make_optimizers,
    make_tokenizer,
    read_pipeline,
    spread_layers,
)
from tiny_wan_vae import earlier, earlier_vae, encode, make_vae
from torch import nn
from training_loop import Clips, Stage, autocast, to_pixels

from freeloc_fx.files import write_text

__all__ = ["DitStage", "load_vae", "spread_times"]


SIGMAS = (0.3, 0.6, 0.85, 0.97)  # noise levels of the validation


def load_vae(
    args: argparse.Namespace, device: torch.device
) -> tuple[nn.Module, int | None, torch.Tensor, torch.Tensor]:
    """The VAE that the transformer's latents come from: the one trained in --work, or else the earlier one.

    Returns:
        The VAE; its training step, None for the earlier one; mean and standard deviation of its latents, (z_dim,).

    Raises:
        ValueError: the latents of --work were normalised for another VAE.
    """
    trained = read_part(args.work / "vae", "average")
    if trained is None:
        vae = earlier_vae().to(device)
        return (vae, None, *(torch.tensor(vae.config[key]) for key in ("latents_mean", "latents_std")))
    vae = make_vae()
    weights, state = trained
    vae.load_state_dict(weights)
    vae.to(device)
    path = args.work / "latents.json"
    if not path.exists():
        z = torch.cat([_encode(vae, Clips(args.seed, 15, 4, FRAMES)[i][0], device) for i in range(8)])
        figures = {"vae_step": state.step, "mean": z.mean((0, 2, 3, 4)).tolist(), "std": z.std((0, 2, 3, 4)).tolist()}
        write_text(path, json.dumps(figures) + "\n")
    figures = json.loads(path.read_text(encoding="utf-8"))
    if figures["vae_step"] != state.step:
        raise ValueError(
            f"{path}: expected latents of the VAE at step {state.step}, found step {figures['vae_step']}; its "
            "transformers were trained on that VAE's latents: move them and this file away to train new ones"
        )
    return vae, state.step, torch.tensor(figures["mean"]), torch.tensor(figures["std"])


@torch.no_grad()
def _encode(vae: nn.Module, clips: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Means of the latents, float32 (batch, z_dim, latent frames, 8, 8), a few clips at a time."""
    parts = []
    for part in clips.split(4 if device.type == "cpu" else 16):
        with autocast(device):
            parts.append(encode(vae, to_pixels(part, device)).chunk(2, 1)[0].float())
    return torch.cat(parts)


class DitStage(Stage):
    """Flow matching on whole clips of 21 latent frames (dit), or on their first three (short).

    Args:
        name: "short" or "dit".
        args: of `train.py`. With a teacher the loss is the distance to what that predicts, without the noise that hides
            it in a clip; the validation is against the clips in either case.
        device: where it runs.

    Raises:
        ValueError: the teacher's latents are normalised otherwise.
    """

    peak = 1e-3

    def __init__(self, name: str, args: argparse.Namespace, device: torch.device) -> None:
        short = name == "short"
        self.name, self.key, self.frames = name, 12 if short else 13, 9 if short else FRAMES
        if args.model == "tiny-joint":
            self.key += 4
        self.seed, self.device, self.levels, self.uniform = args.seed, device, args.levels, args.times == "uniform"
        self.batch = args.batch or (24 if short else 4)
        self.shift = 1.5 if short else 3.0  # fewer frames hide behind less noise
        torch.manual_seed(args.seed)
        self.vae, _, mean, std = load_vae(args, device)
        self.mean, self.std = (v.to(device).view(1, -1, 1, 1, 1) for v in (mean, std))
        self.tokenizer = make_tokenizer()
        model = _start(name, args, self.tokenizer, self.vae.config.z_dim)
        model.prepare_training(device)
        self.finish(model.to(device))
        self.optimizers = make_optimizers(model, args)
        ran, self.teacher = model, None
        if args.teacher is not None:
            teacher = read_teacher(args.teacher, args, len(self.tokenizer), self.mean.flatten(), self.std.flatten())
            teacher.prepare_training(device)
            mine, known = len(model.video_blocks()), len(teacher.video_blocks())
            ran, other = Watched(model, list(range(mine))), Watched(teacher.to(device), spread_layers(mine, known))
            self.teacher = torch.compile(other) if args.compile else other
        self.run = torch.compile(ran) if args.compile else ran
        self.valid = [self._held_out(args.held_out)]

    def _latents(self, clips: torch.Tensor) -> torch.Tensor:
        return (_encode(self.vae, clips, self.device) - self.mean) / self.std

    def _tokens(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.tokenizer(prompts, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt")
        if tokens.input_ids.shape[1] > TEXT_LENGTH:
            raise ValueError(
                f"prompts of {tokens.input_ids.shape[1]} tokens: expected at most {TEXT_LENGTH}: {prompts}"
            )
        return tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)

    def _held_out(self, count: int) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        clips, prompts = Clips(self.seed, 14, count, self.frames)[0]
        x = self._latents(clips)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(self.seed)).to(self.device)
        return x, noise, self._tokens(prompts)

    def prepare(self, clips: torch.Tensor) -> torch.Tensor:
        return self._latents(clips) if self.device.type == "cpu" else clips

    def loss(self, clips: torch.Tensor, prompts: list[str], step: int) -> torch.Tensor:
        x = self._latents(clips) if clips.dtype == torch.uint8 else clips
        x = x.repeat_interleave(self.levels, 0)
        count = len(x)
        generator = torch.Generator().manual_seed((self.seed * 32 + self.key) * 1_000_003 + step)
        told = [p for p in prompts for _ in range(self.levels)]
        dropped = torch.rand(count, generator=generator) < 0.1
        ids, mask = self._tokens(["" if d else p for d, p in zip(dropped.tolist(), told, strict=True)])
        # Shifted towards noise, as the sampler spends its steps there (flow shift 3).
        u = spread_times(len(clips), self.levels, generator, self.uniform)
        sigma = (self.shift * u / (1 + (self.shift - 1) * u)).to(self.device)
        if self.device.type == "cuda":  # one core takes longer to draw it than the GPU to learn from it
            generator = torch.Generator(self.device).manual_seed(generator.initial_seed())
        noise = torch.randn(x.shape, generator=generator, device=self.device)
        if self.teacher is None:
            return self._error(self.run, x, noise, sigma, ids, mask)
        given = _noisy(x, noise, sigma), sigma * 1000, ids, mask
        with autocast(self.device):
            with torch.no_grad():
                target = self.teacher(*given)
            found = self.run(*given)
        return distance(found, target)

    def _error(
        self, model: nn.Module, x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor,
        mask: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        with autocast(self.device):
            prediction = model(_noisy(x, noise, sigma), sigma * 1000, ids, mask)
        return F.mse_loss(prediction.float(), noise - x)

    def validate(self) -> dict[str, float]:
        """Loss on held-out clips, the mean over four noise levels, and at the highest and the lowest of them."""
        x, noise, (ids, mask) = self.valid[0]
        found = []
        for sigma in SIGMAS:
            at = torch.full((len(x),), sigma, device=self.device)
            found.append(float(self._error(self.average, x, noise, at, ids, mask)))
        return {"validation": sum(found) / len(found), "at_0.3": found[0], "at_0.97": found[-1]}


def _noisy(x: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    s = sigma.view(-1, 1, 1, 1, 1)
    return (1 - s) * x + s * noise


def spread_times(clips: int, levels: int, generator: torch.Generator, uniform: bool = False) -> torch.Tensor:
    """Times of flow matching of which each clip has one in each of `levels` equally likely ranges.

    Each is logit-normal or uniform by itself, but no clip is shown at nearly one noise level only, so that a step's
    loss says more about the model and less about the draw (Kingma et al. 2021, Variational Diffusion Models,
    low-discrepancy sampler). Logit-normal times (Esser et al. 2024, Scaling Rectified Flow Transformers) leave 0.9% of
    the batch to noise levels above 0.97 and 2.5% to those below 0.3, at flow shift 3. Uniform ones are as a sampler's
    steps and lower the loss there, but raise it between 0.6 and 0.9, where things get their ways, and the videos are no
    better for it (`bench/README.md`).

    Args:
        clips: how many clips.
        levels: how many times a clip has.
        generator: what they are drawn from.
        uniform: else logit-normal.

    Returns:
        float32 (clips * levels,) in (0, 1), the times of a clip side by side.
    """
    place = (torch.arange(levels) + torch.rand(clips, levels, generator=generator)) / levels
    place = place.clamp(1e-6, 1 - 1e-6).flatten()
    return place if uniform else torch.sigmoid(torch.special.ndtri(place))


def _start(name: str, args: argparse.Namespace, tokenizer, channels: int) -> nn.Module:
    """The model with its first weights: of the stage before, or the earlier ones, or of tiny-wan's blocks."""
    wan = args.model == "tiny-wan"
    if wan:
        model: nn.Module = TextToVideo(args, len(tokenizer), channels)
    else:
        from joint_text_to_video import JointTextToVideo, start_from_wan

        model = JointTextToVideo(args, len(tokenizer), channels)
    before = read_part(args.work / f"{args.model}-short", "average") if name == "dit" else None
    if before is not None:
        model.load_state_dict(before[0])
        return model
    blocks = None if wan else read_part(args.work / "tiny-wan-dit", "average")
    if blocks is not None:  # the video blocks of a tiny-wan that was trained here
        other = TextToVideo(argparse.Namespace(heads=args.heads, layers=None), len(tokenizer), channels)
        other.load_state_dict(blocks[0])
        start_from_wan(model.transformer, other.transformer)
        model.text_encoder.load_state_dict(other.text_encoder.state_dict())
    elif not args.fresh and args.layers is None:
        read_pipeline(earlier(args.model), model)
    return model
