"""Start images, keyframes, references and control, class by class, as diffusers' pipelines hand them to the model.

Of a class that is not in one of the dictionaries neither the forward nor a pipeline takes an input of that kind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from conditioned import Conditioned, conditioned
from diffusers_models import CASES, arguments, build
from layouts import cosmos3_with_actions, minimax_h3_with_frames

from freeloc_fx.method.grid import Further

__all__ = ["CONTROL", "KEYFRAMES", "REFERENCES", "START", "TIMESTEPS", "Maker"]

Maker = Callable[[int], Conditioned]
"""Latent frames, as many as tokens have, -> a model and its call."""


def random(*shape: int) -> torch.Tensor:
    """The same numbers at every call, others than those of the examples."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def made(name: str, frames: int, **config: Any) -> tuple[Any, dict[str, Any]]:
    """The model of a class with changes of its configuration, and a plain call of it."""
    case = CASES[name]
    model = build(name, case=replace(case, config=dict(case.config) | config))
    return model, arguments(name, model, frames * case.patch[0])


def known(frames: int, at: tuple[int, ...], height: int, width: int) -> torch.Tensor:
    """(1, 1, frames, height, width): 1 where a latent frame is given, as at -1 the last one."""
    mask = torch.zeros(1, 1, frames, height, width)
    mask[:, :, list(at)] = 1
    return mask


# Frames that are given in channels beside the noise


def _wan_channels(name: str, at: tuple[int, ...]) -> Maker:
    """Noise, a mask for each of four video frames, a clip with the given frames; the images by cross-attention too."""

    def make(frames: int) -> Conditioned:
        more = {"image_dim": 8, "added_kv_proj_dim": 24}
        if len(at) > 1:
            more["pos_embed_seq_len"] = 514
        model, given = made(name, frames, in_channels=12, **more)
        mask = known(frames, at, *CASES[name].size)
        given["hidden_states"][:, 4:8] = mask
        given["hidden_states"][:, 8:] *= mask
        given["encoder_hidden_states_image"] = random(len(at), 257, 8)
        return Conditioned(model, given)

    return make


def _vace(frames: int, at: tuple[int, ...], references: int = 0) -> Conditioned:
    """What stays and what is made anew of a clip, and the mask; references are frames in front of both."""
    model, given = made("WanVACE", frames + references, vace_in_channels=12)
    control = given["control_hidden_states"]
    stays = known(frames, at, *CASES["WanVACE"].size)
    control[:, :4, references:] *= stays
    control[:, 4:8, references:] *= 1 - stays
    control[:, 4:8, :references] = 0
    control[:, 8:] = torch.cat([torch.zeros(1, 1, references, *stays.shape[3:]), 1 - stays], 2)
    given["control_hidden_states_scale"] = torch.tensor([1.0, 0.5, 0.25])[: len(model.config.vace_layers)]
    return Conditioned(model, given)


def _animate(frames: int, at: tuple[int, ...]) -> Conditioned:
    """The character is the first latent frame; further frames are the last ones of the segment before."""
    model, given = made("WanAnimate", frames)
    mask = known(frames, at, *CASES["WanAnimate"].size)
    given["hidden_states"][:, 4:8] = mask
    given["hidden_states"][:, 8:] *= mask
    given["encoder_hidden_states_image"] = random(1, 257, 8)
    return Conditioned(model, given)


def _beside(name: str, axis: int, more: int, images: str = "", **config: Any) -> Maker:
    """So many channels beside the noise, whose first frame is the image and whose last channel may be a mask of it."""

    def make(frames: int) -> Conditioned:
        case = CASES[name]
        key = "in_channels"
        model, given = made(name, frames, **{key: 4 + more}, **config)
        latents = given["hidden_states"]
        clip = latents if axis == 1 else latents.transpose(1, 2)
        clip[:, 4:] *= known(clip.shape[2], (0,), *case.size)
        if more == 5:
            clip[:, 8:] = known(clip.shape[2], (0,), *case.size)
        if images:
            given[images] = random(1, 16, 12)
        return Conditioned(model, given)

    return make


def _easy_animate(frames: int, at: tuple[int, ...] = (), control: bool = False, reference: bool = False) -> Conditioned:
    """Known frames with their mask, or a clip of control with a channel's worth of the reference in its first frame."""
    more = 5 if not control else 8
    model, given = made("EasyAnimate", frames, in_channels=4 + more)
    given["hidden_states"] = given["hidden_states"][:, :4]
    size = CASES["EasyAnimate"].size
    if control:
        image = random(1, 4, frames, *size) * (known(frames, (0,), *size) if reference else 0)
        given["control_latents"] = torch.cat([random(1, 4, frames, *size).flip(2), image], 1)
    else:
        mask = known(frames, at, *size)
        given["inpaint_latents"] = torch.cat([1 - mask, random(1, 4, frames, *size) * mask], 1)
    return Conditioned(model, given)


def _consisid(frames: int, identity: bool) -> Conditioned:
    """The image in channels; who is in it by an attention of its own that reads features of several depths."""
    face = {
        "LFE_id_dim": 8, "LFE_vit_dim": 6, "LFE_depth": 2, "LFE_dim_head": 4, "LFE_num_heads": 2,
        "LFE_num_id_token": 2, "LFE_num_querie": 3, "LFE_output_dim": 21, "LFE_num_scale": 2,
        "cross_attn_dim_head": 4, "cross_attn_num_heads": 2, "is_train_face": True,
    }  # fmt: skip
    model, given = made("ConsisID", frames, in_channels=8, **(face if identity else {}))
    given["hidden_states"][:, 1:, 4:] = 0
    if identity:
        given |= {"id_cond": random(1, 8), "id_vit_hidden": [random(1, 5, 6), random(1, 5, 6).flip(1)]}
    return Conditioned(model, given)


def _kandinsky5(frames: int) -> Conditioned:
    """The image and its mask in channels, which stand last."""
    model, given = made("Kandinsky5", frames, visual_cond=True)
    given["hidden_states"][:, 1:, ..., 4:] = 0
    given["hidden_states"][..., 8] = 0
    given["hidden_states"][:, 0, ..., 8] = 1
    return Conditioned(model, given)


# Frames that are given in place of noise


def _clean(name: str, rising: bool = False) -> Maker:
    """A first frame at timestep 0, further ones at one or at rising ones; by frame or token as the class takes it."""

    def make(frames: int) -> Conditioned:
        model, given = made(name, frames)
        times = torch.linspace(0, 500, frames) if rising else 500 * (1 - known(frames, (0,), 1, 1).flatten())
        tokens = times.repeat_interleave(_tokens(name))[None]
        if name in ("LTX", "LTX2", "LTX2 split", "Wan", "Wan I2V", "ChronoEdit"):
            given["timestep"] = tokens
            if "audio_hidden_states" in given:
                given["audio_timestep"] = torch.tensor([300.0])
        elif name == "AnyFlow":
            given["timestep"] = times[None]
            given["r_timestep"] = torch.full((1, frames), 400.0)
        elif name == "SanaWM":
            given["timestep"] = times[None, None]
        elif name == "MiniMax-H3":
            steps, indices = tokens[0].unique(return_inverse=True)
            words = len(given["token_tags"]) - len(indices)
            given["timestep"] = torch.cat([steps, torch.tensor([300.0])])  # of words and sound
            given["timestep_indices"] = torch.cat([torch.full((words,), len(steps)), indices])
        else:
            raise ValueError(f"{name}: no timestep a frame is known here")
        return Conditioned(model, given)

    return make


def _tokens(name: str) -> int:
    """Tokens of a frame of the clip."""
    case = CASES[name]
    return case.size[0] // case.patch[1] * (case.size[1] // case.patch[2])


def _cosmos(frames: int) -> Conditioned:
    """Given frames by a mask beside the noise, and a timestep for each frame."""
    model, given = made("Cosmos", frames, in_channels=5)
    given["hidden_states"] = given["hidden_states"][:, :4]
    given["condition_mask"] = known(frames, (0,), *CASES["Cosmos"].size)
    given["timestep"] = 500 * (1 - known(frames, (0,), 1, 1))
    return Conditioned(model, given)


def _diffusion_forcing(frames: int) -> Conditioned:
    """A timestep for each frame, the first one's 0; no attention is masked."""
    model, given = made("SkyReelsV2", frames, inject_sample_info=True)
    times = torch.linspace(0, 500, frames)[None]
    return Conditioned(model, given | {"timestep": times, "enable_diffusion_forcing": True, "fps": [1]})


def _cosmos3(frames: int, at: tuple[int, ...] = (0,)) -> Conditioned:
    """Given frames are no noisy ones: they get no timestep, and nothing is predicted for them."""
    model, given = made("Cosmos3", frames)
    noisy = [index for index in range(frames) if index not in at]
    places = given["vision_sequence_indexes"].view(frames, -1)[noisy].flatten()
    times = torch.linspace(100, 500, len(places))  # each token its own
    more = {"vision_noisy_frame_indexes": [torch.tensor(noisy)], "vision_mse_loss_indexes": places}
    return Conditioned(model, given | more | {"vision_timesteps": times})


# Control, and frames of their own


def _lucy(frames: int) -> Conditioned:
    """The clip to be changed in channels beside the noise."""
    model, given = made("Wan", frames, in_channels=8)
    return Conditioned(model, given)


def _control_blocks(frames: int) -> Conditioned:
    """What a controlnet says to every second block, and words beside tokens of an image."""
    model, given = made("Cosmos", frames, controlnet_block_every_n=1, img_context_dim_in=8, img_context_dim_out=24)
    given["block_controlnet_hidden_states"] = [random(1, frames * 6, 24), random(1, frames * 6, 24).flip(1)]
    given["encoder_hidden_states"] = (given["encoder_hidden_states"], random(1, 5, 8))
    return Conditioned(model, given)


def _camera(frames: int) -> Conditioned:
    """A camera that moves from frame to frame."""
    model, given = made("SanaWM", frames)
    given["camera_conditions"] = given["camera_conditions"].clone()
    given["camera_conditions"][0, :, 3] = torch.linspace(0, 0.5, frames)
    return Conditioned(model, given)


def _items(frames: int) -> Conditioned:
    """A reference and a target, clips of one length: the model puts the reference behind the target, on its clock."""
    model, given = made("JoyImageEdit", frames)
    halves = given["hidden_states"].chunk(2, 2)
    return Conditioned(model, given | {"hidden_states": torch.stack([halves[1], halves[0]], 1)})


def _patches(frames: int) -> Conditioned:
    """A reference of another size behind the clip, at the time after its last frame."""
    model, given = made("JoyImageEditPlus", frames)
    shape = given["hidden_states"].shape
    given["hidden_states"] = torch.cat([given["hidden_states"], random(1, 8, *shape[2:])], 1)
    given["shape_list"] = [[*given["shape_list"][0], (1, 2, 4)]]
    return Conditioned(model, given, (), (Further(float(frames), 2, 4),))


def _of(name: str, **options: Any) -> Maker:
    return lambda frames: conditioned(name, frames, **options)


START: dict[str, list[Maker]] = {
    "Wan": [_clean("Wan")],
    "Wan I2V": [_wan_channels("Wan I2V", (0,))],
    "WanVACE": [lambda frames: _vace(frames, (0,))],
    "WanAnimate": [lambda frames: _animate(frames, (0, 1))],
    "SkyReelsV2": [_wan_channels("SkyReelsV2", (0,)), _diffusion_forcing],
    "ChronoEdit": [_wan_channels("ChronoEdit", (0,))],
    "AnyFlow": [_clean("AnyFlow")],
    "HunyuanVideo": [
        _of("HunyuanVideo token replace"),
        _of("HunyuanVideo latent concat"),
        _beside("HunyuanVideo", 1, 4),
    ],
    "HunyuanVideo15": [_beside("HunyuanVideo15", 1, 5, images="image_embeds")],
    "MotifVideo": [_beside("MotifVideo", 1, 5, images="image_embeds", image_embed_dim=12)],
    "CogVideoX": [_beside("CogVideoX", 2, 4)],
    "CogVideoX 1.5": [_beside("CogVideoX 1.5", 2, 4, ofs_embed_dim=2)],
    "ConsisID": [lambda frames: _consisid(frames, False)],
    "EasyAnimate": [lambda frames: _easy_animate(frames, (0,))],
    "LTX": [_clean("LTX")],
    "LTX2": [_clean("LTX2")],
    "LTX2 split": [_clean("LTX2 split")],
    "Cosmos": [_cosmos],
    "Kandinsky5": [_kandinsky5],
    "Kandinsky6": [_of("Kandinsky6", reference=1)],
    "Cosmos3": [_cosmos3],
    "SanaWM": [_clean("SanaWM")],
    "MiniMax-H3": [lambda frames: minimax_h3_with_frames(frames, anchors=("first",))],
}
KEYFRAMES: dict[str, list[Maker]] = {
    "Wan I2V": [_wan_channels("Wan I2V", (0, -1))],
    "WanVACE": [lambda frames: _vace(frames, (0, frames // 2, -1))],
    "SkyReelsV2": [_wan_channels("SkyReelsV2", (0, -1))],
    "EasyAnimate": [lambda frames: _easy_animate(frames, (0, -1))],
    "LTX": [_of("LTX", reference=0)],
    "LTX2": [_of("LTX2", reference=0)],
    "LTX2 split": [_of("LTX2 split", reference=0)],
    "Cosmos3": [lambda frames: _cosmos3(frames, (0, 1, frames // 2))],
    "MiniMax-H3": [lambda frames: minimax_h3_with_frames(frames, anchors=("first", "last"))],
}
REFERENCES: dict[str, list[Maker]] = {
    "WanVACE": [lambda frames: _vace(frames, (), references=2)],
    "WanAnimate": [lambda frames: _animate(frames, (0,))],
    "ConsisID": [lambda frames: _consisid(frames, True)],
    "EasyAnimate": [lambda frames: _easy_animate(frames, control=True, reference=True)],
    "LTX": [_of("LTX", keyframes=())],
    "LTX2": [_of("LTX2", keyframes=())],
    "LTX2 split": [_of("LTX2 split", keyframes=())],
    "JoyImageEdit": [_items],
    "JoyImageEditPlus": [_patches],
    "MiniMax-H3": [lambda frames: minimax_h3_with_frames(frames, references=((1, 4, 8), (3, 4, 6)))],
}
CONTROL: dict[str, list[Maker]] = {
    "Wan": [_lucy],
    "WanVACE": [lambda frames: _vace(frames, ())],
    "WanAnimate": [lambda frames: _animate(frames, (0,))],
    "CogVideoX": [_beside("CogVideoX", 2, 4)],
    "CogVideoX 1.5": [_beside("CogVideoX 1.5", 2, 4)],
    "EasyAnimate": [lambda frames: _easy_animate(frames, control=True)],
    "Cosmos": [_control_blocks],
    "Cosmos3": [cosmos3_with_actions],
    "SanaWM": [_camera],
}
TIMESTEPS: dict[str, list[Maker]] = {
    name: [_clean(name, rising=True)]
    for name in (
        "Wan", "Wan I2V", "ChronoEdit", "AnyFlow", "LTX", "LTX2", "LTX2 split", "SanaWM", "MiniMax-H3",
    )
} | {"SkyReelsV2": [_diffusion_forcing], "Cosmos": [_cosmos], "Cosmos3": [_cosmos3]}  # fmt: skip
