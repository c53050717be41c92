"""Train a small text-to-video transformer on latents: text, batches, optimisers, checkpoints; for both models."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from freeloc_fx.files import save_figure
from freeloc_fx.generation.tiny_wan.scenes import BACKGROUNDS, CAMERAS, COLOURS, SHAPES, SPEEDS, TEXTURES, Scene

Z_DIM = 12
FRAMES = 81
LATENT_FRAMES = 21
TEXT_LENGTH = 32
PAD_LENGTH = 512  # WanPipeline zero-pads prompts to 512 tokens and attends to all of them


def dit_config(args: argparse.Namespace) -> dict:
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": args.heads,
        "attention_head_dim": 32,
        "in_channels": Z_DIM,
        "out_channels": Z_DIM,
        "text_dim": 128,
        "freq_dim": 256,
        "ffn_dim": args.heads * 32 * 3,
        "num_layers": args.layers,
        "cross_attn_norm": True,
        "rope_max_seq_len": 1024,
    }


class Checkpoint:
    """Model, optimisers' moments and the loss curve in one safetensors file, replaced atomically."""

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        optimizers: tuple[torch.optim.Optimizer, ...] = (),
        ema: nn.Module | None = None,
    ):
        self.path, self.model, self.optimizers, self.ema = path, model, optimizers, ema

    def save(self, step: int, curve: list) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for n, optimizer in enumerate(self.optimizers):
            for i, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optim.{n}.{i}.{k}": v for k, v in state.items()}
        tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
        temporary = self.path.with_suffix(".tmp")
        save_file(tensors, temporary, metadata={"step": str(step), "curve": json.dumps(curve)})
        os.replace(temporary, self.path)

    def load(self) -> tuple[int, list]:
        if not self.path.exists():
            return 0, []
        from safetensors import safe_open

        with safe_open(self.path, "pt") as f:
            meta = f.metadata()
        tensors = load_file(self.path)

        def part(prefix: str) -> dict:
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        if self.ema is not None:
            self.ema.load_state_dict(part("ema."))
        for n, optimizer in enumerate(self.optimizers):
            state: dict = {}
            for key, value in part(f"optim.{n}.").items():
                index, name = key.split(".", 1)
                state.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(meta["step"]), json.loads(meta["curve"])


def schedule(step: int, total: int, peak: float, warmup: int = 100) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))))


def clock(text: str) -> float:
    """Seconds since the epoch at HH:MM of today."""
    now = time.localtime()
    at = time.strptime(text, "%H:%M")
    return time.mktime((now.tm_year, now.tm_mon, now.tm_mday, at.tm_hour, at.tm_min, 0, 0, 0, -1))


def load_latents(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    paths = sorted((args.latents or args.work).glob("latents-*.safetensors"))
    z = torch.cat([load_file(p)["z"] for p in paths])
    mean = z.mean((0, 2, 3, 4))
    std = z.std((0, 2, 3, 4))
    prompts = [Scene.random(np.random.default_rng((args.seed, 2, i))).prompt for i in range(len(z))]
    view = (1, -1, 1, 1, 1)
    return (z - mean.view(view)) / std.view(view), mean, std, prompts


def make_tokenizer():
    """A word-level tokenizer over the prompt grammar, saved and loaded by transformers like any other.

    A colour and the kind behind it are one token, "red circle". With two tokens the model knew which colours and which
    kinds a prompt asks for but never which belongs to which (see `look_at_neighbours`), however long it trained.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*COLOURS, *SHAPES, *BACKGROUNDS, *TEXTURES, *SPEEDS]
    words += ["a", "and", "bounce", "over", "the", "camera", ",", "."]
    words += sorted({w for camera in CAMERAS for w in camera.split()})
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    words += [f"{colour} {kind}" for colour in COLOURS for kind in SHAPES]
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    shapes = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{shapes}|\w+|[^\w\s]+"), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=PAD_LENGTH
    )


def make_text_encoder(vocab_size: int):
    from transformers import UMT5Config, UMT5EncoderModel

    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    look_at_neighbours(encoder)
    return encoder


@torch.no_grad()
def look_at_neighbours(encoder: nn.Module, strength: float = 30.0) -> None:
    """Start three of the four heads on the word before, the word after and the word two before.

    The usual start, biases near zero, makes the encoder a bag of words, and it stayed one through two trainings:
    swapping the kinds of two shapes in a prompt changed the loss by 0.00%, so no sampler could tell "a red circle and a
    white square" from "a red square and a white circle". T5 does not scale its scores: trained ones reach +-15, and a
    bias must stand above them (6 did not, 30 does).
    """
    for block in encoder.encoder.block:
        bias = block.layer[0].SelfAttention.relative_attention_bias.weight  # (buckets, heads); 16 + d is d to the right
        for head, bucket in enumerate((1, 17, 2)):
            bias[bucket, head] = strength


class CompactCrossAttention:
    """Cross-attention over the prompt's tokens plus ONE zero token that stands for all the padding.

    WanPipeline pads with zero embeddings, which become identical keys and values; n identical keys are one key whose
    score is raised by log n. Training this way is exactly the pipeline's attention at a fraction of its cost.
    """

    def __init__(self) -> None:
        from diffusers.models.transformers.transformer_wan import WanAttnProcessor

        self.inner = WanAttnProcessor()
        self.bias: torch.Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb):
        return self.inner(attn, hidden_states, encoder_hidden_states, self.bias, rotary_emb)


class TextToVideo(nn.Module):
    def __init__(self, args: argparse.Namespace, vocab_size: int) -> None:
        super().__init__()
        from diffusers import WanTransformer3DModel

        self.transformer = WanTransformer3DModel(**dit_config(args))
        self.text_encoder = make_text_encoder(vocab_size)
        for block in self.transformer.blocks:  # adaLN-zero: every block starts as the identity
            nn.init.zeros_(block.attn2.to_out[0].weight)
            nn.init.zeros_(block.attn2.to_out[0].bias)
        nn.init.zeros_(self.transformer.proj_out.weight)
        self.compact = CompactCrossAttention()

    def prepare_training(self) -> None:
        for block in self.transformer.blocks:
            block.attn2.set_processor(self.compact)

    def matrices(self) -> list[nn.Parameter]:
        """What Muon takes: the matrices of the blocks."""
        return [p for p in self.transformer.blocks.parameters() if p.ndim == 2]

    def forward(self, z_t: torch.Tensor, t: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        text = self.text_encoder(ids, mask).last_hidden_state * mask[..., None]
        text = torch.cat([text, text.new_zeros(len(text), 1, text.shape[-1])], 1)
        lengths = mask.sum(1)
        bias = torch.where(mask.bool(), 0.0, float("-inf"))
        bias = torch.cat([bias, torch.log((PAD_LENGTH - lengths).float())[:, None]], 1)
        self.compact.bias = bias[:, None, None].to(text.dtype)
        return self.transformer(z_t, t, text, return_dict=False)[0]


def full_precision_muon() -> None:
    """torch's Muon orthogonalises in bfloat16, which a CPU without it emulates a hundred times more slowly."""
    from torch.optim import _muon

    def orthogonal(grad: torch.Tensor, coefficients: tuple, steps: int, eps: float) -> torch.Tensor:
        a, b, c = coefficients
        x = grad.T if grad.size(0) > grad.size(1) else grad
        x = x / x.norm().clamp(min=eps)
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if grad.size(0) > grad.size(1) else x

    _muon._zeropower_via_newtonschulz = orthogonal


def make_optimizers(model: nn.Module, args: argparse.Namespace) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices of the blocks, AdamW for everything else."""
    matrices = model.matrices() if args.muon else []
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01)
    if not matrices:
        return (adam,)
    if not args.bf16:
        full_precision_muon()
    # match_rms_adamw gives both optimisers updates of one size, so that one learning rate serves them.
    return adam, torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")


def with_shape_tokens(table: torch.Tensor, encoder: nn.Module) -> torch.Tensor:
    """An embedding table of the words alone gets rows for "red circle" and the like: the sum of the two words'."""
    tokenizer = make_tokenizer()
    if len(table) == len(tokenizer):
        return table
    wide = encoder.shared.weight.detach().clone()
    wide[: len(table)] = table
    for word, index in tokenizer.get_vocab().items():
        if " " in word:
            colour, kind = word.split()
            wide[index] = table[tokenizer.convert_tokens_to_ids(colour)] + table[tokenizer.convert_tokens_to_ids(kind)]
    return wide


def read_pipeline(folder: Path, *targets: TextToVideo) -> None:
    for name in ("transformer", "text_encoder"):
        (weights,) = (folder / name).glob("*.safetensors")
        part = {k: v.float() for k, v in load_file(weights).items()}
        for target in targets:
            if name == "text_encoder":
                part["shared.weight"] = with_shape_tokens(part["shared.weight"], target.text_encoder)
            missing, unexpected = getattr(target, name).load_state_dict(part, strict=False)
            assert not unexpected and all("embed_tokens" in k for k in missing), (missing, unexpected)


def train_dit(args: argparse.Namespace, make: type[nn.Module] = TextToVideo) -> None:
    """Flow matching on windows of `frames` latent frames: three (stage short), or the whole clip (stage dit).

    Args:
        make: the class of what is trained, built and called as `TextToVideo` is.
    """
    short = args.stage == "short"
    frames, batch, steps, shift = (
        (3, args.short_batch, args.short_steps, 1.5) if short else (21, args.batch, args.dit_steps, 3.0)
    )
    torch.manual_seed(args.seed)
    z, _, _, prompts = load_latents(args)
    tokenizer = make_tokenizer()
    tokens = tokenizer(prompts, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt")
    empty = tokenizer([""], padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt")
    model = make(args, len(tokenizer))
    model.prepare_training()
    ema = make(args, len(tokenizer))
    ema.requires_grad_(False)
    print(f"parameters {sum(p.numel() for p in model.transformer.parameters()):,}", flush=True)
    optimizers = make_optimizers(model, args)
    checkpoint = Checkpoint(args.work / f"{args.stage}.safetensors", model, optimizers, ema)
    step, curve = checkpoint.load()
    if step == 0:
        if not short and (args.work / "short.safetensors").exists():
            Checkpoint(args.work / "short.safetensors", ema, (), model).load()  # its average starts this one
        elif args.dit_init is not None:
            read_pipeline(args.dit_init, model)
            if args.reset_text_bias:
                look_at_neighbours(model.text_encoder)
        ema.load_state_dict(model.state_dict())
    run = torch.compile(model) if args.compile else model
    running, started, first = [], time.monotonic(), step
    if args.until is not None:
        steps = max(steps, step + 2)  # the rate is known after one
    while step < steps:
        if args.until is not None and step > first:  # as many steps as the time left has room for, at the rate so far
            rate = (step - first) / (time.monotonic() - started)
            steps = step + 1 + max(0, round((args.until - time.time()) * rate))
        rng = np.random.default_rng((args.seed, 4 if short else 3, step))
        generator = torch.Generator().manual_seed((args.seed + short) * 1_000_003 + step)
        index = torch.from_numpy(rng.integers(0, len(z), batch))
        begin = rng.integers(0, LATENT_FRAMES - frames + 1, batch)
        x = torch.stack([z[i, :, b : b + frames] for i, b in zip(index.tolist(), begin.tolist(), strict=True)])
        ids, mask = tokens.input_ids[index], tokens.attention_mask[index]
        drop = torch.from_numpy(rng.random(batch) < 0.1)
        ids = torch.where(drop[:, None], empty.input_ids, ids)
        mask = torch.where(drop[:, None], empty.attention_mask, mask)
        # Logit-normal times shifted towards noise, as the sampler spends its steps there (flow shift 3); fewer frames
        # hide behind less noise.
        u = torch.sigmoid(torch.randn(batch, generator=generator))
        sigma = shift * u / (1 + (shift - 1) * u)
        noise = torch.randn(x.shape, generator=generator)
        s = sigma.view(-1, 1, 1, 1, 1)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = schedule(step, steps, args.dit_lr)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            prediction = run((1 - s) * x + s * noise, sigma * 1000, ids, mask)
        loss = F.mse_loss(prediction.float(), noise - x)
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(args.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
        step += 1
        running.append(loss.item())
        if step % 25 == 0:
            rate = (step - first) * batch / (time.monotonic() - started)
            curve.append([step, float(np.mean(running))])
            print(f"{args.stage} {step} loss {np.mean(running):.4f} {rate:.2f} samples/s", flush=True)
            running = []
        if step % 100 == 0 or step == steps:
            checkpoint.save(step, curve)


def draw_curves(recipe: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parts = []
    if "vae" in recipe:
        parts.append(("vae", 3, "VAE", "PSNR of training clips, dB"))
    if "earlier" in recipe:
        parts.append(("earlier", 1, "DiT, earlier run", "flow matching loss"))
    if "short" in recipe:
        parts.append(("short", 1, "DiT, 3 latent frames", "flow matching loss"))
    if "dit" in recipe:
        parts.append(("dit", 1, "DiT, 21 latent frames", "flow matching loss"))
    figure, axes = plt.subplots(1, len(parts), figsize=(4.2 * len(parts), 3), constrained_layout=True, squeeze=False)
    for axis, (name, column, title, label) in zip(axes[0], parts, strict=True):
        stage = recipe[name] if name != "earlier" else recipe["earlier"]["dit"]
        rows = np.array(stage["curve"]["rows"])
        axis.plot(rows[:, 0], rows[:, column])
        axis.set(title=title, xlabel="step", ylabel=label)
    save_figure(figure, path, dpi=100)
    plt.close(figure)
