"""VBench's own feature and quality models, where the user has the weights: DINO and CLIP through transformers, MUSIQ
through pyiqa. Nothing is imported or loaded before an object is made."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from .clip import MetricError, require

__all__ = ["ClipFeatures", "DinoFeatures", "Musiq"]


_CHUNK = 16  # frames at once


def _load(name: str, weights: str | os.PathLike[str], device: str, purpose: str) -> Any:
    """An encoder class of transformers, with weights from a folder or a hub id."""
    transformers = require("transformers", '"freeloc_fx[cli]"', purpose)
    try:
        model = getattr(transformers, name).from_pretrained(weights)
    except (OSError, ValueError, RuntimeError) as error:
        raise MetricError(f"{purpose}: expected a folder or hub id of a {name}, found {weights} ({error})") from error
    return model.eval().to(device)


class _Encoder(ABC):
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mode = "bilinear"
    crop = False
    name: str

    def __init__(self, model: Any, side: int, device: str) -> None:
        self.model, self.side, self.device = model, side, device

    def _pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Normalised float32 (frames, 3, height, width), the shorter side `side`; a centre square where asked."""
        height, width = frames.shape[1:3]
        scale = self.side / min(height, width)
        size = (max(self.side, int(height * scale)), max(self.side, int(width * scale)))
        pixels = torch.from_numpy(np.ascontiguousarray(frames)).to(self.device).permute(0, 3, 1, 2).float()
        pixels = interpolate(pixels, size, mode=self.mode, align_corners=False).clamp(0, 255) / 255
        if self.crop:
            top, left = (size[0] - self.side) // 2, (size[1] - self.side) // 2
            pixels = pixels[:, :, top : top + self.side, left : left + self.side]
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def features(self, frames: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            chunks = [self._encode(self._pixels(frames[i : i + _CHUNK])) for i in range(0, len(frames), _CHUNK)]
        return torch.cat(chunks).float().cpu().numpy()

    @abstractmethod
    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (frames, channels) of normalised pixels (frames, 3, height, width)."""


class DinoFeatures(_Encoder):
    """Class token of a ViT, VBench's subject model with DINO ViT-B/16: frames resized to 224 px on the shorter side.

    Args:
        weights: folder or hub id of a `transformers.ViTModel`.
        device: where it runs.

    Raises:
        MetricError: no such model.
        DependencyError: transformers is missing.
    """

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet

    def __init__(self, weights: str | os.PathLike[str] = "facebook/dino-vitb16", device: str = "cpu") -> None:
        model = _load("ViTModel", weights, device, "subject consistency")
        super().__init__(model, int(model.config.image_size), device)
        self.name = f"ViT {weights}"

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        return found


class ClipFeatures(_Encoder):
    """Image embedding of CLIP, VBench's background model with ViT-B/32: the central square at 224 px.

    Args:
        weights: folder or hub id of a `transformers.CLIPVisionModelWithProjection`.
        device: where it runs.

    Raises:
        MetricError: no such model.
        DependencyError: transformers is missing.
    """

    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
    mode, crop = "bicubic", True

    def __init__(self, weights: str | os.PathLike[str] = "openai/clip-vit-base-patch32", device: str = "cpu") -> None:
        model = _load("CLIPVisionModelWithProjection", weights, device, "background consistency")
        super().__init__(model, int(model.config.image_size), device)
        self.name = f"CLIP {weights}"

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(pixel_values=pixels).image_embeds
        return found


class Musiq:
    """MUSIQ trained on SPAQ, VBench's imaging quality: score / 100, frames at most 512 px on the longer side.

    pyiqa fetches the weights (about 100 MB) on first use.

    Args:
        device: where it runs.

    Raises:
        DependencyError: pyiqa is missing.
    """

    name = "MUSIQ (SPAQ)"

    def __init__(self, device: str = "cpu") -> None:
        pyiqa = require("pyiqa", "pyiqa", "imaging quality with MUSIQ")
        self.metric, self.device = pyiqa.create_metric("musiq-spaq", device=device), device

    def quality(self, frames: np.ndarray) -> np.ndarray:
        """Judge single frames, see `models.QualityModel`.

        Args:
            frames: uint8 RGB (frames, height, width, 3).

        Returns:
            float (frames,), 0 (worst) to 1 (best).
        """
        height, width = frames.shape[1:3]
        scale = min(1.0, 512 / max(height, width))
        found = []
        with torch.inference_mode():
            for frame in frames:
                pixels = torch.from_numpy(np.ascontiguousarray(frame)).to(self.device).permute(2, 0, 1)[None].float()
                if scale < 1:
                    size = (int(height * scale), int(width * scale))
                    pixels = interpolate(pixels, size, mode="bilinear", align_corners=False)
                found.append(float(self.metric(pixels / 255)) / 100)
        return np.array(found)
