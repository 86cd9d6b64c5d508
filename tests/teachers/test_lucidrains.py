"""Checkpoints of denoising-diffusion-pytorch 2.3.1, against what the package itself computed.

`lucidrains.pt` is the file of its Trainer for a small network with random weights (pred_v, cosine
schedule of 100 steps, min-SNR loss weights); `benchmarks/agreement_lucidrains.py` tries more.
"""

from pathlib import Path

import pytest
import torch

from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.storage import read_tensors

DATA = Path(__file__).parents[1] / "reference" / "data"
FILE = DATA / "lucidrains.pt"
EXPECTED = read_tensors(DATA / "lucidrains.expected.safetensors")


def altered(tmp_path, change):
    content = torch.load(FILE, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "model-2.pt")
    return f"lucidrains:{tmp_path / 'model-2.pt'}?image_size=8"


def test_d_is_the_originals():
    teacher = load_teacher(f"lucidrains:{FILE}?image_size=8")
    assert teacher.sample_shape == (1, 8, 8)
    assert teacher.sigma_max == 80
    with torch.no_grad():
        answer = teacher(EXPECTED["x"], EXPECTED["sigma"])
    for one, other in zip(answer, EXPECTED["D"], strict=True):
        assert (one - other).norm() < 1e-5 * other.norm()


def test_a_bare_path_is_recognised_and_the_image_size_asked_for():
    with pytest.raises(PidistillError, match=r"lucidrains:FILE\?image_size=64"):
        load_teacher(FILE)


@pytest.mark.parametrize("gamma", [5.0, float("inf")])
@pytest.mark.parametrize(
    ("objective", "prediction_type"),
    [("pred_noise", "epsilon"), ("pred_x0", "sample"), ("pred_v", "v_prediction")],
)
def test_the_objective_is_inferred_from_the_loss_weights(
    objective, prediction_type, gamma, tmp_path
):
    def change(content):
        snr = content["ema"]["ema_model.sqrt_recipm1_alphas_cumprod"].double() ** -2
        divided = {"pred_noise": snr, "pred_x0": 1, "pred_v": snr + 1}[objective]
        content["ema"]["ema_model.loss_weight"] = (snr.clamp(max=gamma) / divided).float()

    teacher = load_teacher(altered(tmp_path, change))
    assert teacher.precondition.prediction_type == prediction_type


def test_what_the_file_does_not_say_is_asked_for(tmp_path):
    spec = altered(tmp_path, lambda content: content["ema"].pop("ema_model.loss_weight"))
    with pytest.raises(PidistillError, match="append &objective=pred_noise"):
        load_teacher(spec)
    teacher = load_teacher(f"{spec}&objective=pred_x0&sigma_max=20")
    assert (teacher.precondition.prediction_type, teacher.sigma_max) == ("sample", 20)


def add(key, *shape):
    def change(content):
        content["ema"][f"ema_model.{key}"] = torch.zeros(shape)

    return change


@pytest.mark.parametrize(
    ("change", "options", "match"),
    [
        (lambda content: content.pop("ema"), "", "expected the entries 'model' and 'ema'"),
        (lambda content: content["ema"].clear(), "", "another model of denoising-diffusion"),
        (add("model.classes_emb.weight", 3, 4), "", "conditioned on classes"),
        (add("model.time_mlp.0.weights", 4), "", "learned or random sinusoidal"),
        (add("model.downs.0.2.fn.fn.to_qkv.weight", 4), "", "a version before 1.9"),
        (add("model.downs.99.3.weight", 4), "", "does not have the U-Net"),
        (add("sqrt_recipm1_alphas_cumprod", 0), "", r"noise schedule of shape \(0,\)"),
        (add("loss_weight", 3), "", "does not tell what its network predicts"),
        (lambda content: None, "&groups=4", r"divisible by num_groups \(4\)"),
        (add("model.extra", 4), "", "extra"),
        (add("model.final_conv.weight", 3, 6, 1, 1), "", "takes 1 channels and returns 3"),
        (add("model.mid_attn.mem_kv", 2), "", "does not have the U-Net"),
        (lambda content: None, "&objective=v", "objective 'v'; expected pred_noise"),
        (lambda content: None, "&sigma_max=1e9", "noise levels from"),
        (lambda content: None, "&groups=-1", "groups -1; expected a positive number"),
        (lambda content: None, "&size=8", "unknown option 'size'"),
    ],
)
def test_other_files_are_refused_by_name(change, options, match, tmp_path):
    with pytest.raises(PidistillError, match=match) as caught:
        load_teacher(altered(tmp_path, change) + options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, -8, 7])
def test_a_size_that_cannot_be_halved_is_refused(size):
    with pytest.raises(PidistillError, match=rf"image_size {size}; expected a positive multiple"):
        load_teacher(f"lucidrains:{FILE}?image_size={size}")
