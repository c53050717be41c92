"""The first stage of training: the VAE, on clips of a few frames."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from conv_muon import ConvMuon
from text_to_video import full_precision_muon
from tiny_wan_vae import decode, encode, forget_history, make_vae
from torch import nn
from training_loop import Clips, Stage, autocast, is_quick_at_bfloat16, to_pixels

__all__ = ["VaeStage"]


class _Autoencoder(nn.Module):
    """Video and noise in; reconstruction, mean and log-variance out."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, logvar = encode(self.vae, x).chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        return decode(self.vae, mean + torch.exp(0.5 * logvar) * noise), mean, logvar


class VaeStage(Stage):
    """The VAE: absolute and squared error, and a weak pull of the latents to the normal distribution.

    Args:
        start: an earlier VAE to start from, or None for a new one with random weights.
        seed: of all noise and clips.
        device: where it runs.
        batch: clips a step.
        frames: of a clip, 4n+1. Only the layers that double the frames look back, a few latent frames at most.
        compiled: whether to compile.
        muon: whether the kernels are trained by Muon; AdamW trains whatever else there is.
    """

    name, key, peak = "vae", 11, 2e-3

    def __init__(
        self,
        start: nn.Module | None,
        seed: int,
        device: torch.device,
        batch: int = 6,
        frames: int = 9,
        held_out: int = 12,
        compiled: bool = False,
        muon: bool = True,
    ) -> None:
        torch.manual_seed(seed)
        self.seed, self.device, self.batch, self.frames = seed, device, batch, frames
        vae = make_vae() if start is None else start
        forget_history(vae)
        _check(vae)
        self.finish(vae.to(device))
        self.optimizers = _optimizers(vae, self.peak, device, muon)
        run = _Autoencoder(vae)
        self.run = torch.compile(run) if compiled else run
        self.held_out = Clips(seed, 14, held_out, 17)[0][0]

    def loss(self, clips: torch.Tensor, prompts: list[str], step: int) -> torch.Tensor:
        x = to_pixels(clips, self.device)
        latent = (len(x), self.model.config.z_dim, (x.shape[2] - 1) // 4 + 1, x.shape[3] // 8, x.shape[4] // 8)
        noise = torch.randn(latent, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + step))
        with autocast(self.device):
            y, mean, logvar = self.run(x, noise.to(self.device))
        y, mean, logvar = y.float(), mean.float(), logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        return (y - x).abs().mean() + 4 * F.mse_loss(y, x) + 1e-4 * kl

    def validate(self) -> dict[str, float]:
        """PSNR in dB over all frames of each held-out clip and of its first frame, averaged over the clips."""
        whole, first, scale = [], [], []
        for clip in self.held_out.split(4):
            x = to_pixels(clip, self.device)
            with autocast(self.device):
                mean = encode(self.average, x).chunk(2, 1)[0]
                y = decode(self.average, mean).float().clamp(-1, 1)
            squared = (y - x).square().mean((1, 3, 4)) / 4
            whole += [-10 * math.log10(float(s.mean())) for s in squared]
            first += [-10 * math.log10(float(s[0])) for s in squared]
            scale.append(float(mean.float().std()))
        count = len(whole)
        return {
            "psnr": sum(whole) / count,
            "psnr_first_frame": sum(first) / count,
            "latents_std": sum(scale) / len(scale),
        }


def _optimizers(vae: nn.Module, rate: float, device: torch.device, muon: bool) -> tuple[torch.optim.Optimizer, ...]:
    kernels = [p for p in vae.parameters() if p.ndim > 3 and min(p.shape[:2]) > 1] if muon else []
    chosen = {id(p) for p in kernels}
    rest = [p for p in vae.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    if not kernels:
        return (adam,)
    if not is_quick_at_bfloat16(device):
        full_precision_muon()
    return adam, ConvMuon(kernels, lr=rate, weight_decay=1e-4, adjust_lr_fn="match_rms_adamw")


@torch.no_grad()
def _check(vae: nn.Module) -> None:
    """The pass over whole clips must be diffusers' own, frame by frame with its caches."""
    probe = torch.rand(1, 3, 9, 64, 64) * 2 - 1
    vae = copy.deepcopy(vae).eval()
    mean = encode(vae, probe).chunk(2, 1)[0]
    torch.testing.assert_close(mean, vae.encode(probe).latent_dist.mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(decode(vae, mean).clamp(-1, 1), vae.decode(mean).sample, atol=1e-3, rtol=1e-3)
