"""VisionReward (Xu et al. 2024, arXiv 2412.21059) as the reward of a full probe: a video model answers a checklist of
yes/no questions, and the reward is the weighted mean of the answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .clip import Clip, MetricError, require

__all__ = ["VisionReward", "whole_seconds"]


_FRAMES = 24  # that the model sees at most


_PAD = 128002  # Llama 3's reserved token that the checkpoint was trained to pad with


def whole_seconds(frames: int, fps: float, most: int = _FRAMES) -> list[int]:
    """Choose the frames nearest to the seconds 0, 1, 2, ...: the model's "chat" sampling.

    Args:
        frames: video frames.
        fps: frames per second.
        most: how many frames to choose at most.

    Returns:
        Indices of the frames.
    """
    last = (frames - 1) / fps
    times = np.arange(frames) / fps
    return [int(np.abs(times - second).argmin()) for second in range(min(most, round(last) + 1))]


class VisionReward:
    """Scores a video against its prompt.

    Args:
        model: CogVLM2-Video as transformers loads it: `model.build_conversation_input_ids`, `generate`.
        tokenizer: the model's.
        questions: texts with "[[prompt]]" where the prompt goes, answered by yes or no.
        weights: one for each question.
        fps: frames per second of arrays that come without a rate.

    Raises:
        MetricError: no questions, or not one finite weight for each.
    """

    def __init__(
        self, model: Any, tokenizer: Any, questions: Sequence[str], weights: Sequence[float], fps: float = 16.0
    ) -> None:
        found = np.asarray(weights, float)
        if not questions or found.shape != (len(questions),) or not np.isfinite(found).all():
            raise MetricError(
                f"VisionReward: expected one finite weight for each of {len(questions)} questions, found {found.shape}"
            )
        self.model, self.tokenizer, self.questions, self.weights, self.fps = (
            model,
            tokenizer,
            list(questions),
            found,
            fps,
        )

    @classmethod
    def load(
        cls,
        questions: str | os.PathLike[str],
        weights: str | os.PathLike[str],
        model: str | os.PathLike[str] = "THUDM/VisionReward-Video",
        *,
        device: str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        fps: float = 16.0,
        trust_remote_code: bool = False,
    ) -> VisionReward:
        """Load the published model.

        Args:
            questions: `VisionReward_video_qa_select.txt` of the model's repository.
            weights: `weight.json` of the model's repository.
            model: folder or hub id.
            device: where it runs.
            dtype: of its weights.
            fps: frames per second of arrays that come without a rate.
            trust_remote_code: run the Python code that comes with the weights. The published model needs it; read it
                before you agree.

        Returns:
            The reward.

        Raises:
            MetricError: a file is missing or malformed, or the weights cannot be loaded.
            DependencyError: transformers is not installed.
        """
        try:
            texts = [t for t in Path(questions).read_text(encoding="utf-8").splitlines(keepends=True) if t.strip()]
            numbers = json.loads(Path(weights).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise MetricError(f"VisionReward: the checklist cannot be read: {error}") from error
        transformers = require("transformers", '"freeloc_fx[cli]"', "VisionReward")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                model, dtype=dtype, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, ImportError) as error:
            raise MetricError(
                f"VisionReward: {model} cannot be loaded (trust_remote_code={trust_remote_code}): {error}"
            ) from error
        return cls(loaded.eval().to(device), tokenizer, texts, numbers, fps)

    def answers(self, video: Clip | np.ndarray, prompt: str) -> np.ndarray:
        """Ask every question about a video.

        Args:
            video: as of `Clip.of`.
            prompt: what the video should show.

        Returns:
            float (questions,): +1 for each question answered "yes", else -1.
        """
        clip = video if isinstance(video, Clip) else Clip.of(video, self.fps)
        chosen = clip.frames[whole_seconds(len(clip.frames), clip.fps)]
        frames = torch.from_numpy(np.ascontiguousarray(chosen)).permute(3, 0, 1, 2)
        return np.array(
            [1.0 if self._ask(frames, q.replace("[[prompt]]", prompt)) == "yes" else -1.0 for q in self.questions]
        )

    def _ask(self, frames: torch.Tensor, question: str) -> str:
        """The first generated token, greedily; frames: uint8 (3, frames, height, width)."""
        made = self.model.build_conversation_input_ids(
            tokenizer=self.tokenizer, query=question, images=[frames], history=[], template_version="chat"
        )
        device, dtype = self.model.device, self.model.dtype
        inputs = {key: made[key].unsqueeze(0).to(device) for key in ("input_ids", "token_type_ids", "attention_mask")}
        images = [[made["images"][0].to(device, dtype)]]
        with torch.inference_mode():
            output = self.model.generate(**inputs, images=images, max_new_tokens=1, do_sample=False, pad_token_id=_PAD)
        return str(self.tokenizer.decode(output[0, inputs["input_ids"].shape[1]])).strip().lower()

    def __call__(self, video: Clip | np.ndarray, prompt: str) -> float:
        """Score a video: the mean of weight x answer over the questions, larger is better.

        Args:
            video: as of `Clip.of`.
            prompt: what the video should show.

        Returns:
            The score.
        """
        return float(np.mean(self.weights * self.answers(video, prompt)))

    def reward(self, prompts: Sequence[str], seeds: Sequence[int]) -> Callable[[Any, int], float]:
        """Make the reward that `probe` takes.

        Args:
            prompts: those that `probe` gets.
            seeds: those that `probe` gets.

        Returns:
            (video, seed) -> score.

        Raises:
            MetricError: no prompts or seeds.
        """
        if not prompts or not seeds:
            raise MetricError("VisionReward: a reward needs prompts and seeds")
        prompts, seeds = list(prompts), list(seeds)
        return lambda video, seed: self(video, prompts[seeds.index(seed) % len(prompts)])
