"""Reads architecture and objective off a checkpoint of denoising-diffusion-pytorch."""

import re
from typing import Any

import torch
from torch import Tensor

from pidistill.teachers.formats import RefusedError

USUAL_GROUPS = 8
OTHERS = {
    "time_mlp.0.weights": "has a learned or random sinusoidal embedding",
    "classes_emb.weight": "is conditioned on classes (classifier_free_guidance)",
    "downs.0.2.fn.fn.to_qkv.weight": "was written by a version before 1.9, whose layers compute "
    "something else",
}
"""Weights of networks that are not supported, and what these are."""


def network_config(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of `LucidrainsUNet`, from its weights.

    Raises `LookupError`, `ValueError` or `ArithmeticError` if they are of another network, and
    `RefusedError` if that is a known one.
    """
    for key, what in OTHERS.items():
        if key in weights:
            raise RefusedError(f"{what}; that is not supported")
    init_dim, taken = weights["init_conv.weight"].shape[:2]
    given = weights["final_conv.weight"].shape[0]
    if max(taken, given) not in (min(taken, given), 2 * min(taken, given)):
        raise RefusedError(f"has a network that takes {taken} channels and returns {given}")
    dim = weights["time_mlp.1.weight"].shape[1]
    levels = 1 + max(int(m[1]) for key in weights if (m := re.match(r"downs\.(\d{1,3})\.", key)))
    halved = [f"downs.{i}.3.1.weight" for i in range(levels - 1)]
    downs = [weights[key] for key in (*halved, f"downs.{levels - 1}.3.weight")]
    full = [f"downs.{i}.2.to_out.weight" in weights for i in range(levels)]
    memories = [weights[f"downs.{i}.2.mem_kv"] for i in range(levels)]
    return {
        "channels": min(taken, given),
        "dim": dim,
        "init_dim": init_dim,
        "dim_mults": [down.shape[0] // dim for down in downs],
        "full_attn": full,
        "attn_heads": [memory.shape[1] for memory in memories],
        "attn_dim_head": [
            memory.shape[3 if wide else 2] for memory, wide in zip(memories, full, strict=True)
        ],
        "memory": weights["mid_attn.mem_kv"].shape[2],
        "groups": USUAL_GROUPS if "downs.0.0.block1.norm.weight" in weights else 0,
        "self_condition": taken > given,
        "learned_variance": given > taken,
    }


def objective_of(buffers: dict[str, Tensor]) -> str:
    """What the network predicts, by the loss weights of the noise levels.

    With `w = min(SNR, gamma)`, where gamma is infinite unless the loss weights are clipped, they
    are `w / SNR` for `pred_noise`, `w` for `pred_x0` and `w / (SNR + 1)` for `pred_v`. Exactly one
    of the three must turn them into such a `w`.
    """
    snr = buffers["sqrt_recipm1_alphas_cumprod"].double() ** -2
    loss_weight = buffers.get("loss_weight", torch.zeros(())).double()
    if loss_weight.shape != snr.shape:
        loss_weight = torch.zeros_like(snr)
    factors = {"pred_noise": snr, "pred_x0": torch.ones_like(snr), "pred_v": snr + 1}
    fits = []
    for objective, factor in factors.items():
        clipped = loss_weight * factor
        if torch.allclose(clipped, snr.clamp(max=clipped.max()), rtol=1e-3, atol=0):
            fits.append(objective)
    if len(fits) != 1:
        raise RefusedError(
            "does not tell what its network predicts; append &objective=pred_noise, "
            "&objective=pred_x0 or &objective=pred_v"
        )
    return fits[0]
