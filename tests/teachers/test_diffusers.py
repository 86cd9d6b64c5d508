"""Teachers from diffusers pipelines, against the library's own schedulers and networks."""

import itertools
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pidistill import load_teacher, solve
from pidistill.errors import PidistillError
from pidistill.guidance import GuidedDenoiser
from pidistill.model_folder import build_model, describe
from pidistill.precondition import EDMPrecondition
from pidistill.students.trajectory import TrajectoryStudent
from pidistill.teachers.diffusers import load
from pidistill.teachers.formats import pipeline_folder

from diffusers_pipelines import SCHEDULES, ddim, save

diffusers = pytest.importorskip("diffusers")


def draw(num, dtype=torch.float32, channels=3):
    generator = torch.Generator().manual_seed(1)
    shape = (num, channels, 8, 8)
    return (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))


def relative_error(ours, theirs):
    """The largest over the samples of |ours - theirs| / |theirs|."""
    return ((ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)).max().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_it_agrees_with_the_pipeline_at_every_discrete_time(
    tmp_path, schedule, prediction_type, dtype
):
    scheduler = ddim(schedule, prediction_type=prediction_type)
    unet = save(tmp_path, scheduler).to(dtype)
    x0, noise = draw(1000, dtype)
    timesteps = torch.arange(1000)
    sample = scheduler.add_noise(x0, noise, timesteps)
    output = unet(sample, timesteps).sample
    scheduler.set_timesteps(1000)
    theirs = torch.stack(
        [scheduler.step(output[t], t, sample[t]).pred_original_sample for t in timesteps.tolist()]
    )
    teacher = load_teacher(f"diffusers:{tmp_path}").to(dtype)
    sigma = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().to(dtype)
    ours = teacher(x0 + sigma[:, None, None, None] * noise, sigma)
    assert relative_error(ours, theirs) < 1e-5
    assert teacher.sigma_min == pytest.approx(sigma[0].item(), rel=1e-6)
    assert teacher.sigma_max == pytest.approx(sigma[-1].item(), rel=1e-6)


def ddim_sample(scheduler, unet, z, steps):
    """The library's deterministic sampler, from `z` of the variance-preserving coordinates."""
    scheduler.set_timesteps(steps)
    x = z
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t).sample, t, x, eta=0.0).prev_sample
    return x


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_ddim_is_euler_and_first_order(tmp_path, prediction_type):
    scheduler = ddim(prediction_type=prediction_type, timestep_spacing="trailing")
    unet = save(tmp_path, scheduler).double()
    teacher = load_teacher(f"diffusers:{tmp_path}").double()
    z, _ = draw(4, torch.float64)
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().double()
    start = z * (1 + levels[-1] ** 2).sqrt()

    def grid(steps):
        scheduler.set_timesteps(steps)
        return torch.cat([levels[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])

    counts = [25, 50, 100]
    theirs = [ddim_sample(scheduler, unet, z, steps) for steps in counts]
    for steps, sample in zip(counts, theirs, strict=True):
        ours = solve(teacher, start, steps=steps, solver="euler", sigmas=grid(steps))
        assert ours.nfe == steps
        assert relative_error(ours.x, sample) < 1e-5
    reference = solve(teacher, start, solver="heun", sigmas=grid(250)).x
    errors = [relative_error(sample, reference) for sample in theirs]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.8 < slope < 1.2 for slope in slopes)


@torch.no_grad()
def test_consistency_model_networks_are_edm_denoisers(tmp_path):
    scheduler = diffusers.CMStochasticIterativeScheduler(sigma_max=60.0)
    unet = save(tmp_path, scheduler, num_class_embeds=4)
    teacher = load_teacher(f"diffusers:{tmp_path}")
    x0, noise = draw(40)
    label = torch.arange(40) % 4
    sigma = scheduler.sigmas.float()
    x = x0 + sigma[:, None, None, None] * noise
    scaled = x / (sigma**2 + scheduler.config.sigma_data**2).sqrt()[:, None, None, None]
    output = unet(scaled, scheduler.timesteps, label).sample
    c_skip, c_out = scheduler.get_scalings(sigma[:, None, None, None])
    assert relative_error(teacher(x, sigma, label), c_skip * x + c_out * output) < 1e-5
    assert (teacher.sigma_min, teacher.sigma_max, teacher.num_classes) == (0.002, 60.0, 4)


@torch.no_grad()
def test_edm_schedulers(tmp_path):
    scheduler = diffusers.EDMEulerScheduler(sigma_max=50.0)
    unet = save(tmp_path, scheduler)
    teacher = load_teacher(f"diffusers:{tmp_path}")
    x0, noise = draw(5)
    sigma = torch.tensor([0.002, 0.1, 1.0, 10.0, 50.0])
    levels = sigma[:, None, None, None]
    x = x0 + levels * noise
    output = unet(
        scheduler.precondition_inputs(x, levels), scheduler.precondition_noise(sigma)
    ).sample
    theirs = scheduler.precondition_outputs(x, output, levels)
    assert relative_error(teacher(x, sigma), theirs) < 1e-5
    assert isinstance(teacher.precondition, EDMPrecondition)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
)
@torch.no_grad()
def test_flow_matching_at_every_discrete_time(tmp_path, name, shift):
    scheduler = getattr(diffusers, name)(shift=shift)
    unet = save(tmp_path, scheduler).double()
    teacher = load_teacher(f"diffusers:{tmp_path}").double()
    s, timesteps = scheduler.sigmas[1:].double(), scheduler.timesteps[1:]
    assert scheduler.sigmas[0] == 1
    x0, noise = draw(999, torch.float64)
    level = s[:, None, None, None]
    sample = (1 - level) * x0 + level * noise
    theirs = sample - level * unet(sample, timesteps).sample
    sigma = s / (1 - s)
    ours = teacher(x0 + sigma[:, None, None, None] * noise, sigma)
    assert relative_error(ours, theirs) < 1e-5
    assert teacher.sigma_max == pytest.approx(sigma[0].item())
    assert teacher.sigma_min == pytest.approx(sigma[-1].item())


@torch.no_grad()
def test_flow_matching_converges_with_the_library_s_euler(tmp_path):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    unet = save(tmp_path, scheduler).double()
    teacher = load_teacher(f"diffusers:{tmp_path}").double()
    z, _ = draw(4, torch.float64)
    first = 0.98

    def theirs(steps):
        scheduler.set_timesteps(sigmas=torch.linspace(first, 0, steps + 1)[:-1].tolist())
        x = z
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
        return x

    s = torch.linspace(first, 0, 201, dtype=torch.float64)
    reference = solve(teacher, z / (1 - first), sigmas=s / (1 - s)).x
    errors = [relative_error(theirs(steps), reference) for steps in (20, 40, 80)]
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.8 < slope < 1.2 for slope in slopes)


def test_other_schedulers_of_the_family_are_the_same_teacher(tmp_path):
    x0, noise = draw(3)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    x = x0 + sigma[:, None, None, None] * noise
    outputs = []
    for name in (
        "DDPMScheduler",
        "PNDMScheduler",
        "EulerDiscreteScheduler",
        "UniPCMultistepScheduler",
    ):
        scheduler = getattr(diffusers, name)(**SCHEDULES["linear"], beta_start=1e-4, beta_end=0.02)
        save(tmp_path / name, scheduler)
        outputs.append(load_teacher(f"diffusers:{tmp_path / name}")(x, sigma))
    for output in outputs[1:]:
        assert relative_error(output, outputs[0]) < 1e-5


def test_trained_betas(tmp_path):
    betas = torch.linspace(1e-3, 0.1, 50).tolist()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, trained_betas=betas)
    save(tmp_path, scheduler)
    teacher = load_teacher(f"diffusers:{tmp_path}")
    sigma = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    assert torch.equal(teacher.precondition.scales(sigma).c_noise, torch.arange(50.0))


def test_zero_terminal_snr_ends_at_the_last_finite_level(tmp_path):
    scheduler = ddim("scaled_linear", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert scheduler.alphas_cumprod[-1] == 0
    save(tmp_path, scheduler)
    teacher = load_teacher(f"diffusers:{tmp_path}")
    abar = scheduler.alphas_cumprod[-2]
    assert teacher.sigma_max == pytest.approx(((1 - abar) / abar).sqrt().item(), rel=1e-6)
    sigma = torch.tensor([teacher.sigma_max])
    assert teacher.precondition.scales(sigma).c_noise.item() == 998


def test_a_predicted_variance_is_dropped(tmp_path):
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    unet = save(tmp_path, scheduler, out_channels=6)
    teacher = load_teacher(f"diffusers:{tmp_path}")
    x, _ = draw(2)
    sigma = teacher.precondition.sigma_max * torch.ones(2)
    scaled = x / (1 + sigma[0] ** 2).sqrt()
    output = unet(scaled, torch.tensor([999, 999])).sample[:, :3]
    assert relative_error(teacher(x, sigma), x - sigma[0] * output) < 1e-5


def test_labels_and_guidance_by_a_null_class(tmp_path):
    unet = save(tmp_path, ddim(), num_class_embeds=5)
    plain = load_teacher(f"diffusers:{tmp_path}")
    guided = load_teacher(f"diffusers:{tmp_path}?null_class=4&guidance=3")
    assert (plain.num_classes, guided.num_classes) == (5, 4)
    assert isinstance(guided, GuidedDenoiser)
    x, _ = draw(3)
    sigma, label = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0, 2, 3])
    conditional, null = plain(x, sigma, label), plain(x, sigma, torch.tensor([4, 4, 4]))
    assert relative_error(guided(x, sigma, label), null + 3 * (conditional - null)) < 1e-5
    assert relative_error(guided(x, sigma), null) < 1e-5
    c_in, timestep = plain.precondition.scales(sigma)[2:]
    output = unet(c_in[:, None, None, None] * x, timestep, label).sample
    assert relative_error(conditional, x - sigma[:, None, None, None] * output) < 1e-5


def test_noise_levels_can_be_narrowed(tmp_path):
    save(tmp_path, ddim("cosine"))
    teacher = load_teacher(f"diffusers:{tmp_path}?sigma_min=0.02&sigma_max=80")
    assert (teacher.sigma_min, teacher.sigma_max) == (0.02, 80.0)


def test_a_student_copies_the_network_and_is_rebuilt_from_its_description(tmp_path):
    save(tmp_path, ddim(), num_class_embeds=5)
    teacher = load_teacher(f"diffusers:{tmp_path}")
    student = TrajectoryStudent.from_teacher(teacher, anchored=True)
    z, _ = draw(3)
    z = teacher.sigma_max * z
    sigma, label = torch.full((3,), teacher.sigma_max), torch.tensor([0, 1, -1])
    assert relative_error(student.F(z, sigma, label), teacher(z, sigma, label)) < 1e-5
    for model in (teacher, student):
        again = build_model(json.loads(json.dumps(describe(model))), "test").eval()
        again.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(again(z, sigma / 2, label), model(z, sigma / 2, label))


def test_a_bare_path_is_recognised(tmp_path):
    save(tmp_path, ddim())
    assert load_teacher(str(tmp_path)).source == f"diffusers:{tmp_path}"


def test_components_in_the_root_as_in_old_repositories(tmp_path):
    save(tmp_path, ddim())
    x, _ = draw(1)
    expected = load_teacher(str(tmp_path))(x, torch.ones(1))
    for component in ("unet", "scheduler"):
        for file in (tmp_path / component).iterdir():
            file.rename(tmp_path / file.name)
        (tmp_path / component).rmdir()
    assert torch.equal(load_teacher(str(tmp_path))(x, torch.ones(1)), expected)


def test_a_repository_is_fetched_without_pickles(tmp_path, monkeypatch):
    save(tmp_path, ddim())
    calls = []

    def snapshot_download(repository, **options):
        calls.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    teacher = load_teacher("diffusers:someone/some-ddpm?revision=abc")
    ((repository, options),) = calls
    assert (repository, options["revision"]) == ("someone/some-ddpm", "abc")
    assert "unet/*.safetensors" in options["allow_patterns"]
    assert not any(".bin" in p or p.endswith(".*") for p in options["allow_patterns"])
    assert teacher.source == "diffusers:someone/some-ddpm?revision=abc"


def test_a_repository_that_cannot_be_fetched(monkeypatch):
    def snapshot_download(repository, **options):
        raise OSError("404 Client Error\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(PidistillError, match=r"cannot be fetched .*404 Client Error"):
        load_teacher("diffusers:someone/nothing")


def pickled(folder):
    """Turn the UNet's weights into a pickle, as old pipelines have them."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def test_pickles_are_refused_by_default(tmp_path, monkeypatch):
    save(tmp_path, ddim())
    pickled(tmp_path)
    monkeypatch.delenv(pipeline_folder.ALLOW_PICKLE, raising=False)
    with pytest.raises(PidistillError) as refusal:
        load_teacher(f"diffusers:{tmp_path}")
    message = str(refusal.value)
    assert "\n" not in message
    assert "are a pickle, diffusion_pytorch_model.bin" in message
    assert "save_pretrained" in message
    assert "PIDISTILL_ALLOW_PICKLE=1" in message


def test_pickles_are_read_where_allowed(tmp_path, monkeypatch):
    save(tmp_path, ddim())
    x, _ = draw(1)
    expected = load(str(tmp_path))(x, torch.ones(1))
    pickled(tmp_path)
    monkeypatch.setenv(pipeline_folder.ALLOW_PICKLE, "1")
    assert torch.equal(load(str(tmp_path))(x, torch.ones(1)), expected)


class Malicious:
    def __reduce__(self):
        return (exec, ("import pathlib, os; pathlib.Path(os.environ['WITNESS']).touch()",))


def test_an_allowed_pickle_still_executes_nothing(tmp_path, monkeypatch):
    save(tmp_path, ddim())
    pickled(tmp_path)
    witness = tmp_path / "executed"
    monkeypatch.setenv("WITNESS", str(witness))
    torch.save({"conv_in.weight": Malicious()}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    monkeypatch.setenv(pipeline_folder.ALLOW_PICKLE, "1")
    with pytest.raises(PidistillError, match="the unet cannot be loaded"):
        load(str(tmp_path))
    assert not witness.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("conv_in.weight"), r"conv_in\.weight"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "extra"),
    ],
)
def test_a_missing_or_unexpected_weight_is_an_error(tmp_path, change, named):
    save(tmp_path, ddim())
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)
    with pytest.raises(PidistillError, match=named):
        load_teacher(f"diffusers:{tmp_path}")


def test_a_damaged_file_is_an_error(tmp_path):
    save(tmp_path, ddim())
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(PidistillError, match="the unet cannot be loaded") as error:
        load_teacher(f"diffusers:{tmp_path}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("?guidance=2", "null_class"),
        ("?null_class=7&guidance=2", "null_class is 7, but .* has 5 rows"),
        ("?prompts=p.txt", "not conditioned on text"),
        ("?guidence=2", "unknown option 'guidence'"),
        ("?guidance=high", "guidance is 'high' .*; expected a finite number"),
        ("?null_class=1.5", "expected a whole number"),
        ("?sigma_max=inf", "expected a finite number"),
        ("?revision=", "expected a text"),
        ("?sigma_max=500", r"sigma_max is 500; the scheduler allows 0\.01\d+ <= sigma_min"),
        ("?sigma_min=1&sigma_max=0.5", "sigma_min is 1 and sigma_max is 0.5"),
    ],
)
def test_options_that_make_no_sense(tmp_path, options, message):
    save(tmp_path, ddim(), num_class_embeds=5)
    with pytest.raises(PidistillError, match=message):
        load_teacher(f"diffusers:{tmp_path}{options}")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sample_size": None}, "sample_size is null"),
        ({"in_channels": 4}, "takes 4 channels and returns 3"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    ],
)
def test_networks_that_are_no_teachers(tmp_path, config, message):
    save(tmp_path, ddim(), **config)
    with pytest.raises(PidistillError, match=message):
        load_teacher(f"diffusers:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("LCMScheduler", {}, "scheduler of the pipeline is of class LCMScheduler"),
        ("ScoreSdeVeScheduler", {}, "is of class ScoreSdeVeScheduler"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous"},
            "timestep_type is 'continuous'",
        ),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas is True"),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, "is 'v_prediction', which"),
        (
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
            "use_flow_sigmas is True",
        ),
    ],
)
def test_schedulers_without_a_counterpart(tmp_path, name, options, message):
    save(tmp_path, getattr(diffusers, name)(**options))
    with pytest.raises(PidistillError, match=message):
        load_teacher(f"diffusers:{tmp_path}")


def test_places_that_are_no_pipelines(tmp_path):
    save(tmp_path / "pipeline", ddim())
    file = tmp_path / "model.safetensors"
    file.touch()
    for locator, message in [
        ("", "names no pipeline"),
        (str(tmp_path / "pipeline" / "unet"), "holds no model_index.json"),
        (str(file), "is a single file"),
        (str(tmp_path / "nowhere"), "is neither an existing folder nor the OWNER/NAME"),
    ]:
        with pytest.raises(PidistillError, match=message):
            load_teacher(f"diffusers:{locator}")


def test_a_pipeline_without_a_unet(tmp_path):
    save(tmp_path, ddim())
    index = tmp_path / "model_index.json"
    content = json.loads(index.read_text())
    del content["unet"]
    index.write_text(json.dumps(content))
    with pytest.raises(PidistillError, match="the unet of the pipeline is missing"):
        load_teacher(f"diffusers:{tmp_path}")
    content["unet"] = ["my_code", "MyUNet"]
    index.write_text(json.dumps(content))
    with pytest.raises(PidistillError, match="is of class MyUNet; expected one of UNet2DModel"):
        load_teacher(f"diffusers:{tmp_path}")
    shutil.rmtree(tmp_path / "unet")
