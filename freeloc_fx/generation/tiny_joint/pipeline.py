"""A text-to-video pipeline around a transformer of HunyuanVideo's kind with one small text encoder.

diffusers' HunyuanVideoPipeline brings a Llama and a CLIP encoder of fixed templates; this one has a UMT5 encoder, the
guidance of two calls a step and Wan's VAE. Arguments and callbacks are those of diffusers' video pipelines.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, ModelMixin, UniPCMultistepScheduler
from diffusers.pipelines.hunyuan_video.pipeline_output import HunyuanVideoPipelineOutput
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

from freeloc_fx.errors import ModelError
from freeloc_fx.generation import tiny_wan

__all__ = ["MAX_TEXT", "TinyJointPipeline"]


MAX_TEXT = 32
"""Text tokens of a call. The grammar's longest prompt has 26 or so; what is left is padding, which the model masks."""


log = logging.get_logger(__name__)


_Pipeline: Any = DiffusionPipeline  # for mypy: modules become attributes when they are registered


class TinyJointPipeline(_Pipeline):
    """Text to video by a transformer with joint attention.

    Args:
        tokenizer: of the text encoder.
        text_encoder: gives the text states.
        transformer: of HunyuanVideo's kind.
        vae: Wan's; a folder without one gets tiny-wan's.
        scheduler: of the denoising steps.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]  # noqa: RUF012 - diffusers' name

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: UMT5EncoderModel,
        transformer: ModelMixin,
        vae: AutoencoderKLWan,
        scheduler: UniPCMultistepScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, vae=vae, scheduler=scheduler
        )
        self.vae_scale_factor_temporal = self.vae.config.scale_factor_temporal if vae is not None else 4
        self.vae_scale_factor_spatial = self.vae.config.scale_factor_spatial if vae is not None else 8
        self.video_processor = VideoProcessor(vae_scale_factor=self.vae_scale_factor_spatial)
        self._guidance_scale = 1.0
        self._interrupt = False
        self._num_timesteps = 0

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], **options: Any) -> Any:
        """Load a pipeline as `DiffusionPipeline.from_pretrained` does; a VAE that the folder lacks is tiny-wan's.

        Args:
            folder: of the pipeline.
            **options: see `DiffusionPipeline.from_pretrained`.

        Returns:
            The pipeline.

        Raises:
            ModelError: tiny-wan's VAE is needed and its files are missing, or its latents are not those of the folder's
                transformer.
        """
        lent = None
        if "vae" not in options and not (Path(folder) / "vae").is_dir():
            given = {}
            for name in ("dtype", "torch_dtype"):  # diffusers renamed it
                if name in options:
                    wanted = options[name]
                    given[name] = wanted.get("vae", wanted.get("default")) if isinstance(wanted, dict) else wanted
            lent = options["vae"] = AutoencoderKLWan.from_pretrained(tiny_wan.path(), subfolder="vae", **given)
        pipe: Any = super().from_pretrained(folder, **options)
        channels = pipe.transformer.config.in_channels
        if lent is not None and lent.config.z_dim != channels:
            raise ModelError(
                f"{os.fspath(folder)}: expected a folder vae beside a transformer of {channels} latent channels, found "
                f"none; tiny-wan's VAE, which stands in, has {lent.config.z_dim}"
            )
        return pipe

    @property
    def guidance_scale(self) -> float:
        """Scale of classifier-free guidance of the last call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the last call runs the negative prompt too."""
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the steps that are left are passed over; a callback sets `_interrupt`."""
        return self._interrupt

    def encode_prompt(self, prompt: list[str], device: torch.device | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Turn prompts into what the transformer reads. Longer prompts are cut, with a warning.

        Args:
            prompt: one or more prompts.
            device: where the result lies; None: where the pipeline runs.

        Returns:
            Text states (prompts, MAX_TEXT, channels) in the encoder's dtype, and their mask (prompts, MAX_TEXT), int64,
            1 on text tokens and 0 on padding.
        """
        device = device or self._execution_device
        lengths = [len(ids) for ids in self.tokenizer(prompt).input_ids]
        if max(lengths) > MAX_TEXT:
            log.warning(f"prompt: expected at most {MAX_TEXT} tokens, found {max(lengths)}; the rest is cut off")
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=MAX_TEXT, truncation=True, return_tensors="pt"
        ).to(device)
        states = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return states, tokens.attention_mask

    def _predict(self, latents: torch.Tensor, t: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The transformer's prediction for one step and one prompt a video."""
        weight = mask[..., None].to(text.dtype)
        return self.transformer(
            hidden_states=latents.to(self.transformer.dtype),
            timestep=t.expand(len(latents)),
            encoder_hidden_states=text,
            encoder_attention_mask=mask,
            pooled_projections=(text * weight).sum(1) / weight.sum(1),
            attention_kwargs=self._attention_kwargs,
            return_dict=False,
        )[0]

    def check_inputs(self, height: int, width: int, num_frames: int, tensors: list[str]) -> None:
        """Refuse sizes that are no whole number of tokens and unknown callback tensors.

        Args:
            height: of the video in pixels.
            width: of the video in pixels.
            num_frames: frames of the video.
            tensors: names of the tensors that a callback asks for.

        Raises:
            ValueError: says what was expected and what was found.
        """
        multiple = self.vae_scale_factor_spatial * self.transformer.config.patch_size
        for name, size in (("height", height), ("width", width)):
            if size < multiple or size % multiple:
                raise ValueError(f"{name}: expected a multiple of {multiple}, found {size}")
        step = self.vae_scale_factor_temporal
        if num_frames < 1 or (num_frames - 1) % step:
            raise ValueError(f"num_frames: expected 1 more than a multiple of {step}, found {num_frames}")
        unknown = [name for name in tensors if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs: expected names of {self._callback_tensor_inputs}, found {unknown}"
            )

    def prepare_latents(
        self,
        batch_size: int,
        num_channels_latents: int,
        height: int,
        width: int,
        num_frames: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Draw the initial noise, or take what is given.

        Args:
            batch_size: videos.
            num_channels_latents: channels of the latents.
            height: of the video in pixels.
            width: of the video in pixels.
            num_frames: frames of the video.
            dtype: of the noise.
            device: where the result lies.
            generator: what to draw from, one for all videos or one for each.
            latents: noise to take instead, or None.

        Returns:
            (videos, channels, latent frames, latent height, latent width).

        Raises:
            ValueError: the latents given have another shape.
        """
        shape = (
            batch_size,
            num_channels_latents,
            (num_frames - 1) // self.vae_scale_factor_temporal + 1,
            height // self.vae_scale_factor_spatial,
            width // self.vae_scale_factor_spatial,
        )
        if latents is None:
            made: torch.Tensor = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            return made
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents: expected shape {shape}, found {tuple(latents.shape)}")
        return latents.to(device, dtype)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int = 64,
        width: int = 64,
        num_frames: int = 81,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        prompt_attention_mask: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        negative_prompt_attention_mask: torch.Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> Any:
        """Denoise and decode; the arguments are those of diffusers' video pipelines.

        Args:
            prompt: one prompt, or a list; None where there are embeddings.
            negative_prompt: one for all prompts, or a list of one for each; None: the empty one.
            height: of the video in pixels.
            width: of the video in pixels.
            num_frames: frames of the video.
            num_inference_steps: denoising steps.
            guidance_scale: scale of classifier-free guidance; 1 or less runs the prompt alone.
            num_videos_per_prompt: videos of each prompt.
            generator: what the initial noise is drawn from, one for all videos or one for each.
            latents: initial noise (videos, channels, latent frames, latent height, latent width) in its place.
            prompt_embeds: text states as of `encode_prompt`, in place of the prompt.
            prompt_attention_mask: their mask.
            negative_prompt_embeds: text states in place of the negative prompt.
            negative_prompt_attention_mask: their mask.
            output_type: "np", "pt", "pil", or "latent" for normalised latents.
            return_dict: whether to return an output with a name, or a tuple.
            attention_kwargs: passed to the transformer.
            callback_on_step_end: called as callback(pipeline, step, timestep, tensors) after each step; returns the
                tensors that it changes.
            callback_on_step_end_tensor_inputs: names of the tensors that it is given; None: the latents.

        Returns:
            An output with `.frames`, (videos, frames, height, width, 3) in [0, 1] for "np"; without `return_dict` a
            tuple of the frames.

        Raises:
            ValueError: see `check_inputs`, there are not as many negative prompts as prompts, or embeddings have no
                mask.
        """
        wanted = callback_on_step_end_tensor_inputs or ["latents"]
        self.check_inputs(height, width, num_frames, wanted)
        self._guidance_scale, self._attention_kwargs, self._interrupt = guidance_scale, attention_kwargs, False
        device = self._execution_device
        dtype = self.transformer.dtype

        def encode(
            texts: list[str], states: torch.Tensor | None, mask: torch.Tensor | None
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if states is None:
                states, mask = self.encode_prompt(texts, device)
            if mask is None or mask.shape != states.shape[:2]:
                raise ValueError("embeddings: expected the mask of their tokens beside them")
            n = num_videos_per_prompt
            return states.to(device, dtype).repeat_interleave(n, 0), mask.to(device).repeat_interleave(n, 0)

        if prompt is None and prompt_embeds is None:
            raise ValueError("prompt: expected a prompt or prompt_embeds, found neither")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
        count = len(prompts) if prompt_embeds is None else len(prompt_embeds)
        negative = negative_prompt if isinstance(negative_prompt, list) else [negative_prompt or ""] * count
        if len(negative) != count:
            raise ValueError(f"negative_prompt: expected {count}, one a prompt, found {len(negative)}")
        prompt_embeds, prompt_mask = encode(prompts, prompt_embeds, prompt_attention_mask)
        without, negative_mask = prompt_embeds, prompt_mask  # not read without guidance
        if self.do_classifier_free_guidance:
            without, negative_mask = encode(negative, negative_prompt_embeds, negative_prompt_attention_mask)
        negative_prompt_embeds = without
        latents = self.prepare_latents(
            len(prompt_embeds), self.transformer.config.in_channels, height, width, num_frames, torch.float32, device,
            generator, latents,
        )  # fmt: skip
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        self.scheduler.set_begin_index(0)
        with self.progress_bar(total=num_inference_steps) as bar:
            for i, t in enumerate(timesteps):
                if self.interrupt:
                    continue
                with self.transformer.cache_context("cond"):
                    noise = self._predict(latents, t, prompt_embeds, prompt_mask)
                if self.do_classifier_free_guidance:
                    with self.transformer.cache_context("uncond"):
                        plain = self._predict(latents, t, negative_prompt_embeds, negative_mask)
                    noise = plain + guidance_scale * (noise - plain)
                latents = self.scheduler.step(noise, t, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    known = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    changed = callback_on_step_end(self, i, t, {name: known[name] for name in wanted})
                    latents = changed.pop("latents", latents)
                    prompt_embeds = changed.pop("prompt_embeds", prompt_embeds)
                    negative_prompt_embeds = changed.pop("negative_prompt_embeds", negative_prompt_embeds)
                bar.update()
        video: Any = latents
        if output_type != "latent":
            mean, std = (
                torch.tensor(values, device=device, dtype=self.vae.dtype).view(1, -1, 1, 1, 1)
                for values in (self.vae.config.latents_mean, self.vae.config.latents_std)
            )
            decoded = self.vae.decode(latents.to(self.vae.dtype) * std + mean, return_dict=False)[0]
            video = self.video_processor.postprocess_video(decoded, output_type=output_type)
        self.maybe_free_model_hooks()
        return HunyuanVideoPipelineOutput(frames=video) if return_dict else (video,)
