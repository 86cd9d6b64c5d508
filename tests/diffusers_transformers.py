"""Small pipelines of transformers with random weights, saved on the spot."""

import torch

from diffusers_pipelines import LETTERS, PROMPTS, diffusers, text_encoder, transformers

SCHEDULERS = {
    "ddim": lambda: diffusers.DDIMScheduler(
        clip_sample=False, set_alpha_to_one=False, steps_offset=1
    ),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"),
    "flow": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


def autoencoder(channels, **config):
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        **config,
    ).eval()


def with_random_modulation(transformer):
    """The library's fresh weights are small enough to hide a mistake in the conditioning."""
    for name, parameter in transformer.named_parameters():
        if "norm1.linear" in name or "emb" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return transformer.eval()


def dit(folder, scheduler, **config):
    """Save a small DiT pipeline with random weights, and return it."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8}
    transformer = diffusers.DiTTransformer2DModel(**{**sizes, "out_channels": 8, **config})
    channels = transformer.config.in_channels
    pipeline = diffusers.DiTPipeline(
        with_random_modulation(transformer), autoencoder(channels), scheduler
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder)
    return pipeline


def clip(folder, size):
    tokenizer, encoder = text_encoder(folder)
    config = {**encoder.config.to_dict(), "hidden_size": size, "projection_dim": size}
    config = transformers.CLIPTextConfig(**config)
    return tokenizer, transformers.CLIPTextModelWithProjection(config).eval()


def t5(size):
    tokens = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = transformers.T5Tokenizer(vocab=[(t, -1.0) for t in tokens], extra_ids=0)
    config = transformers.T5Config(
        vocab_size=len(tokens), d_model=size, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return tokenizer, transformers.T5EncoderModel(config).eval()


def stable_diffusion_3(folder, *, with_t5=True, **config):
    """Save a small Stable Diffusion 3 pipeline with random weights, and return it."""
    torch.manual_seed(0)
    tokenizer, encoder = clip(folder / "first", 16)
    tokenizer_2, encoder_2 = clip(folder / "second", 8)
    tokenizer_3, encoder_3 = t5(32) if with_t5 else (None, None)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
    widths = {"joint_attention_dim": 32, "pooled_projection_dim": 24, "pos_embed_max_size": 6}
    sizes |= {"sample_size": 8, "num_layers": 2}
    transformer = diffusers.SD3Transformer2DModel(**{**sizes, **widths, **config})
    pipeline = diffusers.StableDiffusion3Pipeline(
        with_random_modulation(transformer),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        autoencoder(16, scaling_factor=1.5305, shift_factor=0.0609),
        *(encoder, tokenizer, encoder_2, tokenizer_2, encoder_3, tokenizer_3),
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(folder / "pipeline")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return pipeline
