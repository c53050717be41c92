"""What the training changes: tiny-wan's transformer with its text encoder, the tokenizer, the optimisers."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from training_attention import use
from training_loop import is_quick_at_bfloat16

from freeloc_fx.generation.tiny_wan.palette import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    COUNTS,
    FLOORS,
    SHAPES,
    SIZES,
    SPEEDS,
    SURFACES,
    TEXTURES,
    VERBS,
)

FRAMES = 81
TEXT_LENGTH = 32  # tokens that training reads of a prompt; one at least is padding, so that every text has a masked key
ENDS = {f"{end}.{kind}" for end in ("patch_embedding", "x_embedder.proj", "proj_out") for kind in ("weight", "bias")}
"""Parameters whose shape follows the channels of the latents."""
PAD_LENGTH = 512  # WanPipeline zero-pads prompts to 512 tokens and attends to all of them


def dit_config(args: argparse.Namespace, channels: int) -> dict:
    return {
        "patch_size": (1, 2, 2),
        "num_attention_heads": args.heads,
        "attention_head_dim": 32,
        "in_channels": channels,
        "out_channels": channels,
        "text_dim": 128,
        "freq_dim": 256,
        "ffn_dim": args.heads * 32 * 3,
        "num_layers": args.layers or 10,
        "cross_attn_norm": True,
        "rope_max_seq_len": 1024,
    }


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
    words += [f"{colour} {kind}" for colour in COLOURS for kind in SHAPES]
    # Words that came later stand at the end, so that weights from before still fit.
    words += ["some", "shape", "shapes", "floor", *VERBS, *COUNTS, *SIZES, *SURFACES, *FLOORS]
    words += [f"{colour} shape" for colour in COLOURS]
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    shapes = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}|shape)\b"
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


def spread_layers(count: int, of: int) -> list[int]:
    """Layers of a transformer of `of` layers that `count` layers of another stand for, spread evenly."""
    return [round(i * (of - 1) / (count - 1)) for i in range(count)]


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
    """The transformer with its text encoder: what `train_dit.DitStage` trains.

    Args:
        args: of `train.py`.
        vocab_size: tokens of the tokenizer.
        channels: of the latents.
    """

    def __init__(self, args: argparse.Namespace, vocab_size: int, channels: int) -> None:
        super().__init__()
        from diffusers import WanTransformer3DModel

        self.transformer = WanTransformer3DModel(**dit_config(args, channels))
        self.text_encoder = make_text_encoder(vocab_size)
        for block in self.transformer.blocks:  # adaLN-zero: every block starts as the identity
            nn.init.zeros_(block.attn2.to_out[0].weight)
            nn.init.zeros_(block.attn2.to_out[0].bias)
        nn.init.zeros_(self.transformer.proj_out.weight)
        self.compact = CompactCrossAttention()

    def prepare_training(self, device: torch.device) -> None:
        from diffusers.models.transformers import transformer_wan

        use(transformer_wan, device)
        for block in self.transformer.blocks:
            block.attn2.set_processor(self.compact)

    def video_blocks(self) -> list[nn.Module]:
        """The blocks that video tokens go through, in order."""
        return list(self.transformer.blocks)

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
    if not is_quick_at_bfloat16(next(model.parameters()).device):
        full_precision_muon()
    # match_rms_adamw gives both optimisers updates of one size, so that one learning rate serves them.
    return adam, torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")


def with_new_tokens(table: torch.Tensor, encoder: nn.Module) -> torch.Tensor:
    """An embedding table of fewer tokens gets the rows it lacks: "red circle" is the sum of its words, the others are
    new."""
    tokenizer = make_tokenizer()
    wide = encoder.shared.weight.detach().clone().to(table.device)
    wide[: len(table)] = table
    for word, index in tokenizer.get_vocab().items():
        if index >= len(table) and " " in word:
            wide[index] = sum(wide[tokenizer.convert_tokens_to_ids(part)] for part in word.split())
    return wide


def read_pipeline(folder: Path, target: nn.Module) -> None:
    """Read transformer and text encoder from the folder of a pipeline; ends of other latents start afresh."""
    for name in ("transformer", "text_encoder"):
        (weights,) = (folder / name).glob("*.safetensors")
        part = {k: v.float() for k, v in load_file(weights).items()}
        fresh = getattr(target, name).state_dict()
        for key in ENDS & part.keys():
            if part[key].shape != fresh[key].shape:
                part[key] = fresh[key]
        if name == "text_encoder":
            part["shared.weight"] = with_new_tokens(part["shared.weight"], target.text_encoder)
        missing, unexpected = getattr(target, name).load_state_dict(part, strict=False)
        if unexpected or not all("embed_tokens" in k for k in missing):
            raise ValueError(f"{weights}: expected the weights of {name}; missing {missing}, unexpected {unexpected}")
