"""Small diffusers pipelines with random weights, saved on the spot.

Importing this module skips the tests that do so where diffusers is not installed.
"""

import json

import pytest
import torch

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ["a red cat", "two dogs"]

UNET = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
SCHEDULES = {
    "linear": {"beta_schedule": "linear"},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}


def ddim(schedule="linear", **options):
    return diffusers.DDIMScheduler(**SCHEDULES[schedule], clip_sample=False, **options)


def save(folder, scheduler, **config):
    """Save a small pipeline with random weights to `folder`, and return its UNet."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**{**UNET, **config}).eval()
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return unet


def text_encoder(folder):
    """A small CLIP tokenizer that knows letters, and a small text encoder."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12
    )
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return tokenizer, transformers.CLIPTextModel(config).eval()


def autoencoder():
    """A small one for latents of 4 channels."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


def stable_diffusion(folder, prediction_type="epsilon", **config):
    """Save a small Stable Diffusion pipeline with random weights, and return it."""
    torch.manual_seed(0)
    tokenizer, encoder = text_encoder(folder / "text")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
        **config,
    ).eval()
    pipeline = diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type=prediction_type,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "pipeline")
    (folder / "prompts.txt").write_text("\n".join(["", *PROMPTS, ""]))
    return pipeline


def spec(folder, more=""):
    return f"diffusers:{folder / 'pipeline'}?prompts={folder / 'prompts.txt'}{more}"
