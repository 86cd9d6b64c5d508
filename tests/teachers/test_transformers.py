"""Transformers of diffusers pipelines, against the library's own pipelines and scheduler steps."""

import json

import pytest
import torch

from pidistill import load_student, load_teacher, solve
from pidistill.cli import main
from pidistill.errors import PidistillError
from pidistill.networks import build_network

from diffusers_pipelines import PROMPTS, diffusers, spec
from diffusers_transformers import SCHEDULERS, dit, stable_diffusion_3


def close(ours, theirs):
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def their_denoised(scheduler, output, index, u):
    """What the library's own step at its timestep number `index` makes of a network's output."""
    scheduler = type(scheduler).from_config(scheduler.config)
    scheduler.set_timesteps(10)
    step = scheduler.step(output, scheduler.timesteps[index], u)
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        s, after = scheduler.sigmas[index : index + 2]  # a straight line, on to s = 0
        return u + (step.prev_sample - u) * s / (s - after)
    if isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
        return scheduler.model_outputs[-1]
    return step.pred_original_sample


def level(scheduler, t):
    """Sigma at timestep t, and the factor by which the network's input is smaller than x."""
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        s = t.double() / 1000
        return s / (1 - s), 1 - s
    abar = scheduler.alphas_cumprod[t.long()].double()
    return ((1 - abar) / abar).sqrt(), abar.sqrt()


@pytest.mark.parametrize("channels", [None, 8])
@pytest.mark.parametrize("schedule", SCHEDULERS)
@torch.no_grad()
def test_a_dit_is_its_scheduler_s_step(tmp_path, schedule, channels):
    """With and without a predicted variance; label -1 is the row after the last class."""
    scheduler = SCHEDULERS[schedule]()
    pipeline = dit(tmp_path, scheduler, out_channels=channels, num_embeds_ada_norm=5)
    teacher = load_teacher(f"diffusers:{tmp_path}")
    assert (teacher.sample_shape, teacher.num_classes, teacher.sigma_data) == ((4, 8, 8), 5, 1)
    label, x = torch.tensor([0, 4, -1]), torch.randn(3, 4, 8, 8)
    scheduler.set_timesteps(10)
    for index in (1, 5, 9):
        t = scheduler.timesteps[index]
        sigma, scale = level(scheduler, t)
        u = (x * scale).float()
        output = pipeline.transformer(u, t.expand(3), torch.tensor([0, 4, 5])).sample[:, :4]
        theirs = their_denoised(scheduler, output, index, u)
        close(teacher(x, sigma.float().expand(3), label), theirs)


@torch.no_grad()
def test_guided_euler_is_dit_s_own_loop(tmp_path):
    """The pipeline has fixed its row without a label at 1000."""
    pipeline = dit(tmp_path, SCHEDULERS["ddim"]())
    teacher = load_teacher(f"diffusers:{tmp_path}?guidance=4")
    theirs = pipeline(
        [7, 999], 4.0, torch.Generator().manual_seed(0), num_inference_steps=10, output_type="pt"
    ).images
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    scheduler = pipeline.scheduler
    timesteps = torch.tensor([*scheduler.timesteps.tolist(), 0])
    sigmas, scales = level(scheduler, timesteps)
    x = solve(
        teacher,
        start / scales[0].float(),
        solver="euler",
        sigmas=sigmas,
        label=torch.tensor([7, 999]),
    ).x
    images = teacher.decoder(x * scales[-1].float())
    torch.testing.assert_close((images / 2 + 0.5).clamp(0, 1), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("with_t5", [True, False])
@torch.no_grad()
def test_guided_euler_is_stable_diffusion_3_s_own_loop(tmp_path, with_t5):
    """Covers three encoders, the pooled projections, the shift of noise levels and of latents."""
    options = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"} if with_t5 else {}
    pipeline = stable_diffusion_3(tmp_path, with_t5=with_t5, **options)
    teacher = load_teacher(spec(tmp_path, "&guidance=4"))
    assert (teacher.sample_shape, teacher.num_classes) == ((16, 8, 8), 2)
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"guidance_scale": 4.0, "sigmas": [0.9, 0.6, 0.3], "num_inference_steps": 3}
    options |= {"latents": latents, "prompt": PROMPTS, "height": 16, "width": 16}
    theirs = pipeline(output_type="latent", **options).images

    s = pipeline.scheduler.sigmas.double()
    assert s[0] == pytest.approx(3 * 0.9 / (1 + 2 * 0.9))
    start = (latents / (1 - s[0])).float()
    sigmas = s / (1 - s)
    x = solve(teacher, start, solver="euler", sigmas=sigmas, label=torch.tensor([0, 1])).x
    close(x, theirs)
    images = (teacher.decoder(x) / 2 + 0.5).clamp(0, 1)
    theirs = pipeline(output_type="pt", **options).images
    torch.testing.assert_close(images, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["dit", "sd3"])
def test_a_student_is_distilled_and_needs_no_pipeline(tmp_path, kind):
    if kind == "dit":
        dit(tmp_path / "pipeline", SCHEDULERS["flow"](), num_embeds_ada_norm=3)
        teacher = f"diffusers:{tmp_path / 'pipeline'}?guidance=2"
    else:
        stable_diffusion_3(tmp_path)
        teacher = spec(tmp_path, "&guidance=2")
    run = tmp_path / "run"
    options = ["--max-train-steps", "2", "--batch-size", "4", "--set", "preview_steps=0"]
    options += ["--method", "pid", "--set", "method.derivative=jvp"]
    assert main(["distill", "--teacher", teacher, "--out", str(run), *options]) == 0
    label = ["--label", "1" if kind == "dit" else PROMPTS[1]]
    assert main(["sample", str(run), "-n", "2", *label, "--out", str(tmp_path / "x.png")]) == 0
    assert main(["evaluate", str(run), "-n", "4", "--metrics", "error", "--num-error", "2"]) == 0
    (tmp_path / "pipeline").rename(tmp_path / "elsewhere")
    student = load_student(run)
    z = student.sigma_max * torch.randn(2, *student.sample_shape)
    out = student(z, torch.ones(2), torch.tensor([0, -1]))
    assert out.shape == z.shape
    assert out.isfinite().all()
    assert student.train()(z, torch.ones(2), torch.tensor([0, -1])).equal(out)  # no label dropout


def test_a_folder_that_names_the_class_by_its_old_name_or_has_no_index(tmp_path):
    pipeline = dit(tmp_path, SCHEDULERS["ddim"](), num_embeds_ada_norm=5)
    for file, change in {
        "model_index.json": {
            "transformer": ["diffusers", "Transformer2DModel"],
            "id2label": {"0": "tench, Tinca tinca", "4": "hammerhead"},
        },
        "transformer/config.json": {
            "_class_name": "Transformer2DModel",
            "num_vector_embeds": None,
            "sample_size": "8",
        },
    }.items():
        config = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps({**config, **change}))
    assert load_teacher(str(tmp_path)).class_names[::4] == ("tench, Tinca tinca", "hammerhead")
    for _ in range(2):
        network = load_teacher(str(tmp_path)).network.transformer
        for name, tensor in pipeline.transformer.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor)
        (tmp_path / "model_index.json").unlink(missing_ok=True)


def test_published_sizes():
    """DiT-XL/2 at 256x256 and the medium Stable Diffusion 3."""
    dit_xl = {"num_layers": 28, "num_attention_heads": 16, "out_channels": 8}
    sd3 = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
    with torch.device("meta"):
        large = build_network("class_transformer", dit_xl).transformer
        medium = build_network(
            "prompt_transformer", {"transformer": sd3, "prompts": ["a"], "prompt_length": 333}
        )
    # The library has an embedding in each of its 28 blocks, and the original one.
    embedding = sum(p.numel() for p in large.transformer_blocks[0].norm1.emb.parameters())
    number = sum(p.numel() for p in large.parameters()) - 27 * embedding
    assert number + large.pos_embed.pos_embed.numel() == 675_129_632
    assert sum(p.numel() for p in medium.parameters()) == 2_028_328_000


def test_what_cannot_be_read_is_named(tmp_path):
    dit(tmp_path / "odd", SCHEDULERS["ddim"](), sample_size=9, num_embeds_ada_norm=5)
    dit(tmp_path / "fine", SCHEDULERS["ddim"](), num_embeds_ada_norm=5)
    for query, message in {
        "odd": "sample_size is 9; expected a multiple of its patch_size, 2",
        "fine?null_class=3": "null_class is 3",
        "fine?prompts=file.txt": "not conditioned on text",
    }.items():
        with pytest.raises(PidistillError, match=message):
            load_teacher(f"diffusers:{tmp_path}/{query}")
    index = json.loads((tmp_path / "fine" / "model_index.json").read_text())
    index["transformer"][1] = "FluxTransformer2DModel"
    (tmp_path / "fine" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(PidistillError, match=r"a network \(FluxTransformer2DModel\); expected"):
        load_teacher(f"diffusers:{tmp_path}/fine")
