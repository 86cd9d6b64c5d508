"""Text-conditional and latent pipelines, against the library's own Stable Diffusion."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill import load_student, load_teacher, solve
from pidistill.cli import main
from pidistill.errors import PidistillError
from pidistill.evaluation.metrics import error_metrics
from pidistill.evaluation.sampling import teacher_samples
from pidistill.evaluation.trajectory import per_sample_rms
from pidistill.images import columns_by_class, grid
from pidistill.model_folder import build_model, describe
from pidistill.students.trajectory import TrajectoryStudent
from pidistill.teachers.formats.latent import read_prompts

from diffusers_pipelines import PROMPTS, spec, stable_diffusion

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_guided_euler_is_the_pipeline_s_ddim(tmp_path, prediction_type):
    """Covers prompts, guidance, the network's conventions, and the decoder together."""
    pipeline = stable_diffusion(tmp_path, prediction_type)
    teacher = load_teacher(spec(tmp_path, "&guidance=7.5"))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"guidance_scale": 7.5, "num_inference_steps": 10, "latents": latents}
    theirs = pipeline(PROMPTS, output_type="latent", **options).images

    scheduler = pipeline.scheduler
    abar = scheduler.alphas_cumprod[[*scheduler.timesteps.tolist(), 0]]
    sigmas = ((1 - abar) / abar).sqrt()
    start = latents * (1 + sigmas[0] ** 2).sqrt()
    x = solve(teacher, start, solver="euler", sigmas=sigmas, label=torch.tensor([0, 1])).x
    ours = x / (1 + sigmas[-1] ** 2).sqrt()  # set_alpha_to_one is off: it ends at timestep 0
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()

    images = pipeline(PROMPTS, output_type="np", **options).images
    decoded = (teacher.decoder(ours) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(decoded, torch.from_numpy(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_labels_are_prompts_and_no_label_is_the_empty_prompt(tmp_path):
    pipeline = stable_diffusion(tmp_path)
    teacher = load_teacher(spec(tmp_path))
    assert (teacher.num_classes, teacher.sample_shape, teacher.sigma_data) == (2, (4, 8, 8), 1.0)
    assert teacher.network.config["prompts"] == PROMPTS
    texts, empty = pipeline.encode_prompt([*PROMPTS, PROMPTS[0]], "cpu", 1, True)
    x = torch.randn(3, 4, 8, 8)
    sigma = torch.full((3,), teacher.sigma_max)
    c_in = 1 / (1 + sigma[0] ** 2).sqrt()
    for label, text in ((torch.tensor([0, 1, 0]), texts), (torch.tensor([-1, -1, -1]), empty)):
        output = pipeline.unet(c_in * x, torch.tensor([999] * 3), text).sample
        torch.testing.assert_close(teacher(x, sigma, label), x - sigma[0] * output)
    assert torch.equal(teacher(x, sigma), teacher(x, sigma, torch.tensor([-1, -1, -1])))


def test_a_student_needs_neither_text_encoder_nor_teacher(tmp_path):
    stable_diffusion(tmp_path)
    teacher = load_teacher(spec(tmp_path))
    student = TrajectoryStudent.from_teacher(teacher)
    again = build_model(json.loads(json.dumps(describe(student))), "test").eval()
    again.load_state_dict(student.state_dict(), strict=True)
    z = teacher.sigma_max * torch.randn(3, 4, 8, 8)
    sigma, label = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0, 1, -1])
    assert torch.equal(again(z, sigma, label), student(z, sigma, label))
    names = {name.split(".")[1] for name, _ in student.named_parameters()}
    assert names == {"unet"}


@torch.no_grad()
def test_unconditional_latents_with_a_vector_quantised_decoder(tmp_path):
    torch.manual_seed(0)
    autoencoder = diffusers.VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=4,
    ).eval()
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
    )
    pipeline = diffusers.LDMPipeline(autoencoder, unet, diffusers.DDIMScheduler())
    pipeline.save_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path))
    assert (teacher.sample_shape, teacher.num_classes, teacher.sigma_data) == ((3, 8, 8), 0, 1.0)
    latents = torch.randn(2, 3, 8, 8)
    expected = autoencoder.decode(latents / autoencoder.config.scaling_factor).sample
    torch.testing.assert_close(teacher.decoder(latents), expected)


def test_prompts_are_required_and_have_to_be_there(tmp_path):
    stable_diffusion(tmp_path)
    (tmp_path / "empty.txt").write_text("\n  \n")
    for query, message in [
        ("", r"\?prompts=FILE.txt"),
        (f"?prompts={tmp_path / 'nowhere.txt'}", r"nowhere\.txt cannot be read"),
        (f"?prompts={tmp_path / 'empty.txt'}", r"empty\.txt is empty"),
    ]:
        with pytest.raises(PidistillError, match=message):
            load_teacher(f"diffusers:{tmp_path / 'pipeline'}{query}")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa cat\n\n  two dogs \n",
        b"a cat\r\n\r\ntwo dogs\r\n",
        b"\r\ra cat\rtwo dogs",
        "a cat\ntwo dogs".encode("utf-16"),
        b"\xfe\xff" + "a cat\r\ntwo dogs\r\n".encode("utf-16-be"),
    ],
)
def test_prompts_from_editors_of_all_systems(tmp_path, content):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert read_prompts(str(tmp_path / "prompts.txt")) == ["a cat", "two dogs"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\0cat", "character NUL"),
        (b"caf\xe9", "cannot be read as text in UTF-8"),
        (b"\xef\xbb\xbf \n", "is empty"),
        (b"a\n" * 10_001, "holds 10001 prompts; expected 1 to 10000"),
    ],
)
def test_prompts_that_are_no_text_or_too_many(tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(PidistillError, match=message):
        read_prompts(str(tmp_path / "prompts.txt"))


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10**30}, None),
        ("unet/config.json", {"cross_attention_dim": [16, 16]}, "cross_attention_dim is"),
        ("model_index.json", {"image_encoder": ["transformers", "CLIPVisionModel"]}, None),
    ],
)
def test_configs_of_text_pipelines(tmp_path, file, values, message):
    stable_diffusion(tmp_path)
    config = tmp_path / "pipeline" / file
    x, sigma = torch.ones(1, 4, 8, 8), torch.ones(1)
    expected = load_teacher(spec(tmp_path))(x, sigma)
    config.write_text(json.dumps(json.loads(config.read_text()) | values))
    if message is None:
        assert torch.equal(load_teacher(spec(tmp_path))(x, sigma), expected)
    else:
        with pytest.raises(PidistillError, match=message):
            load_teacher(spec(tmp_path))


def test_inpainting_is_refused_before_prompts_are_asked_for(tmp_path):
    stable_diffusion(tmp_path, in_channels=9, out_channels=4)
    with pytest.raises(PidistillError, match="takes 9 channels and returns 4, as for inpainting"):
        load_teacher(f"diffusers:{tmp_path / 'pipeline'}")


def test_networks_that_want_more_than_a_text_are_refused(tmp_path):
    stable_diffusion(tmp_path, class_embed_type="timestep")
    with pytest.raises(PidistillError, match="class_embed_type is 'timestep'"):
        load_teacher(spec(tmp_path))


def test_a_student_of_latents_is_sampled_and_evaluated_as_images(tmp_path):
    """Only the error compares latents."""
    stable_diffusion(tmp_path)
    run, drawn, solved = tmp_path / "run", tmp_path / "x.npz", tmp_path / "teacher.npz"
    options = ["--max-train-steps", "2", "--batch-size", "2", "--set", "preview_steps=0"]
    assert main(["distill", "--teacher", spec(tmp_path), "--out", str(run), *options]) == 0
    teacher, student = load_teacher(spec(tmp_path)), load_student(run)

    assert main(["sample", str(run), "-n", "4", "--out", str(drawn)]) == 0
    images = torch.from_numpy(np.load(drawn)["samples"])
    torch.testing.assert_close(images, teacher.decoder(student.generate(4, seed=0).x))
    assert main(["sample", spec(tmp_path), "-n", "2", "--steps", "2", "--out", str(solved)]) == 0
    assert np.load(solved)["samples"].shape == (2, *images.shape[1:])

    names = ["--metrics", "error,diversity", "--num-error", "2"]
    assert main(["evaluate", str(run), "-n", "4", *names]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    latents = teacher_samples(teacher, 2, seed=0).x
    expected = error_metrics(per_sample_rms(student.generate(2, seed=0).x, latents))
    assert metrics["rms_error"] == pytest.approx(expected["rms_error"], rel=1e-3)
    with Image.open(run / "evaluation" / "samples.png") as image:
        shown = np.asarray(image).astype(int)
    expected = grid(images, columns=columns_by_class(4, student.num_classes))
    assert np.abs(shown[-len(expected) :] - expected).max() <= 1  # below the titles
