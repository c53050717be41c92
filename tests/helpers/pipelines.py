"""A WanPipeline with random weights, small enough to be made and run in a test."""

from __future__ import annotations

from pathlib import Path

import torch

Z_DIM = 4
WORDS = [
    "a",
    "and",
    "red",
    "white",
    "circle",
    "square",
    "bounce",
    "slowly",
    "over",
    "navy",
    "grid",
    "the",
    "camera",
    ",",
]


def tokenizer():
    """Word-level over a few words of tiny-wan's grammar."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def save(folder: Path, rope_max_seq_len: int = 64) -> Path:
    """Write the pipeline's folder: two layers, one head of 12 channels, 4n+1 frames, multiples of 16 pixels."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    words = tokenizer()
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0,
            pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=Z_DIM,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=8,
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=1,
        attention_head_dim=12,
        in_channels=Z_DIM,
        out_channels=Z_DIM,
        text_dim=16,
        freq_dim=16,
        ffn_dim=24,
        num_layers=2,
        cross_attn_norm=True,
        rope_max_seq_len=rope_max_seq_len,
    )
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
    )
    pipe = WanPipeline(tokenizer=words, text_encoder=encoder, vae=vae, scheduler=scheduler, transformer=transformer)
    pipe.save_pretrained(folder)
    return folder
