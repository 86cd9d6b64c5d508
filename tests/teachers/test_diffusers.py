"""Teachers from diffusers pipelines, against the library's own schedulers and networks."""

import itertools
import json
import math

import pytest
import torch

from pidistill import load_teacher, solve
from pidistill.errors import PidistillError
from pidistill.guidance import GuidedDenoiser
from pidistill.model_folder import build_model, describe
from pidistill.precondition import EDMPrecondition
from pidistill.students.trajectory import TrajectoryStudent

from diffusers_pipelines import SCHEDULES, ddim, save

diffusers = pytest.importorskip("diffusers")


@pytest.fixture
def load(tmp_path):
    """Saves and loads a pipeline; returns (its UNet, the teacher) in the same dtype."""

    def saved(scheduler, query="", dtype=torch.float32, **config):
        unet = save(tmp_path, scheduler, **config).to(dtype)
        return unet, load_teacher(f"diffusers:{tmp_path}{query}").to(dtype)

    return saved


def draw(num, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return (torch.randn((num, 3, 8, 8), generator=generator, dtype=dtype) for _ in range(2))


def relative_error(ours, theirs):
    """The maximum of |ours - theirs| / |theirs| over samples."""
    return ((ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1)).max().item()


def assert_first_order(errors):
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.8 < slope < 1.2 for slope in slopes)


def levels_of(scheduler):
    return ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()


def expand(sigma):
    return sigma[:, None, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_it_agrees_with_the_pipeline_at_every_discrete_time(load, schedule, prediction_type, dtype):
    scheduler = ddim(schedule, prediction_type=prediction_type)
    unet, teacher = load(scheduler, dtype=dtype)
    x0, noise = draw(1000, dtype)
    timesteps = torch.arange(1000)
    sample = scheduler.add_noise(x0, noise, timesteps)
    output = unet(sample, timesteps).sample
    scheduler.set_timesteps(1000)
    theirs = torch.stack(
        [scheduler.step(output[t], t, sample[t]).pred_original_sample for t in timesteps.tolist()]
    )
    sigma = levels_of(scheduler).to(dtype)
    assert relative_error(teacher(x0 + expand(sigma) * noise, sigma), theirs) < 1e-5
    ends = (sigma[0].item(), sigma[-1].item())
    assert (teacher.sigma_min, teacher.sigma_max) == pytest.approx(ends, rel=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_ddim_is_euler_and_first_order(load, prediction_type):
    scheduler = ddim(prediction_type=prediction_type, timestep_spacing="trailing")
    unet, teacher = load(scheduler, dtype=torch.float64)
    z, _ = draw(4, torch.float64)
    levels = levels_of(scheduler).double()
    start = z * (1 + levels[-1] ** 2).sqrt()

    def theirs(steps):
        scheduler.set_timesteps(steps)
        x = z
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, eta=0.0).prev_sample
        return x

    def grid(steps):
        scheduler.set_timesteps(steps)
        return torch.cat([levels[scheduler.timesteps], torch.zeros(1, dtype=torch.float64)])

    counts = [25, 50, 100]
    samples = [theirs(steps) for steps in counts]
    for steps, sample in zip(counts, samples, strict=True):
        ours = solve(teacher, start, steps=steps, solver="euler", sigmas=grid(steps))
        assert ours.nfe == steps
        assert relative_error(ours.x, sample) < 1e-5
    reference = solve(teacher, start, solver="heun", sigmas=grid(250)).x
    assert_first_order([relative_error(sample, reference) for sample in samples])


@torch.no_grad()
def test_consistency_model_networks_are_edm_denoisers(load):
    scheduler = diffusers.CMStochasticIterativeScheduler(sigma_max=60.0)
    unet, teacher = load(scheduler, num_class_embeds=4)
    x0, noise = draw(40)
    label = torch.arange(40) % 4
    sigma = scheduler.sigmas.float()
    x = x0 + expand(sigma) * noise
    scaled = x / expand((sigma**2 + scheduler.config.sigma_data**2).sqrt())
    output = unet(scaled, scheduler.timesteps, label).sample
    c_skip, c_out = scheduler.get_scalings(expand(sigma))
    assert relative_error(teacher(x, sigma, label), c_skip * x + c_out * output) < 1e-5
    assert (teacher.sigma_min, teacher.sigma_max, teacher.num_classes) == (0.002, 60.0, 4)


@torch.no_grad()
def test_edm_schedulers(load):
    scheduler = diffusers.EDMEulerScheduler(sigma_max=50.0)
    unet, teacher = load(scheduler)
    x0, noise = draw(5)
    sigma = torch.tensor([0.002, 0.1, 1.0, 10.0, 50.0])
    x = x0 + expand(sigma) * noise
    scaled = scheduler.precondition_inputs(x, expand(sigma))
    output = unet(scaled, scheduler.precondition_noise(sigma)).sample
    theirs = scheduler.precondition_outputs(x, output, expand(sigma))
    assert relative_error(teacher(x, sigma), theirs) < 1e-5
    assert isinstance(teacher.precondition, EDMPrecondition)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["Euler", "Heun"])
@torch.no_grad()
def test_flow_matching_at_every_discrete_time(load, kind, shift):
    scheduler = getattr(diffusers, f"FlowMatch{kind}DiscreteScheduler")(shift=shift)
    unet, teacher = load(scheduler, dtype=torch.float64)
    s, timesteps = scheduler.sigmas[1:].double(), scheduler.timesteps[1:]
    assert scheduler.sigmas[0] == 1
    x0, noise = draw(999, torch.float64)
    sample = (1 - expand(s)) * x0 + expand(s) * noise
    theirs = sample - expand(s) * unet(sample, timesteps).sample
    sigma = s / (1 - s)
    assert relative_error(teacher(x0 + expand(sigma) * noise, sigma), theirs) < 1e-5
    ends = (sigma[-1].item(), sigma[0].item())
    assert (teacher.sigma_min, teacher.sigma_max) == pytest.approx(ends)


@torch.no_grad()
def test_flow_matching_converges_with_the_library_s_euler(load):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    unet, teacher = load(scheduler, dtype=torch.float64)
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
    assert_first_order([relative_error(theirs(steps), reference) for steps in (20, 40, 80)])


def test_other_schedulers_of_the_family_are_the_same_teacher(load):
    x0, noise = draw(3)
    sigma = torch.tensor([0.1, 1.0, 10.0])
    x = x0 + expand(sigma) * noise
    outputs = []
    for name in ("DDPM", "PNDM", "EulerDiscrete", "UniPCMultistep"):
        scheduler = getattr(diffusers, f"{name}Scheduler")(
            **SCHEDULES["linear"], beta_start=1e-4, beta_end=0.02
        )
        outputs.append(load(scheduler)[1](x, sigma))
    for output in outputs[1:]:
        assert relative_error(output, outputs[0]) < 1e-5


def test_trained_betas(load):
    betas = torch.linspace(1e-3, 0.1, 50).tolist()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=50, trained_betas=betas)
    scales = load(scheduler)[1].precondition.scales(levels_of(scheduler))
    assert torch.equal(scales.c_noise, torch.arange(50.0))


@pytest.mark.parametrize(("name", "last"), [("DDIM", 0), ("EulerDiscrete", 2**-24)])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_zero_terminal_snr_ends_at_the_last_finite_level(load, name, last, schedule):
    scheduler = getattr(diffusers, f"{name}Scheduler")(
        **SCHEDULES[schedule], prediction_type="v_prediction", rescale_betas_zero_snr=True
    )
    assert scheduler.alphas_cumprod[-1] == last
    _, teacher = load(scheduler)
    assert teacher.sigma_max == pytest.approx(levels_of(scheduler)[-2].item(), rel=1e-6)
    assert teacher.precondition.scales(torch.tensor([teacher.sigma_max])).c_noise.item() == 998


def test_a_predicted_variance_is_dropped(load):
    unet, teacher = load(diffusers.DDPMScheduler(variance_type="learned_range"), out_channels=6)
    x, _ = draw(2)
    sigma = teacher.sigma_max * torch.ones(2)
    scaled = x / (1 + sigma[0] ** 2).sqrt()
    output = unet(scaled, torch.tensor([999, 999])).sample[:, :3]
    assert relative_error(teacher(x, sigma), x - sigma[0] * output) < 1e-5


def test_labels_and_guidance_by_a_null_class(load):
    unet, plain = load(ddim(), num_class_embeds=5)
    _, guided = load(ddim(), "?null_class=4&guidance=3", num_class_embeds=5)
    assert (plain.num_classes, guided.num_classes) == (5, 4)
    assert isinstance(guided, GuidedDenoiser)
    x, _ = draw(3)
    sigma, label = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0, 2, 3])
    conditional, null = plain(x, sigma, label), plain(x, sigma, torch.tensor([4, 4, 4]))
    assert relative_error(guided(x, sigma, label), null + 3 * (conditional - null)) < 1e-5
    assert relative_error(guided(x, sigma), null) < 1e-5
    c_in, timestep = plain.precondition.scales(sigma)[2:]
    output = unet(expand(c_in) * x, timestep, label).sample
    assert relative_error(conditional, x - expand(sigma) * output) < 1e-5


def test_noise_levels_can_be_narrowed(load):
    _, teacher = load(ddim("cosine"), "?sigma_min=0.02&sigma_max=80")
    assert (teacher.sigma_min, teacher.sigma_max) == (0.02, 80.0)


def test_a_student_copies_the_network_and_is_rebuilt_from_its_description(load):
    _, teacher = load(ddim(), num_class_embeds=5)
    student = TrajectoryStudent.from_teacher(teacher, anchored=True)
    z, _ = draw(3)
    z = teacher.sigma_max * z
    sigma, label = torch.full((3,), teacher.sigma_max), torch.tensor([0, 1, -1])
    assert relative_error(student.F(z, sigma, label), teacher(z, sigma, label)) < 1e-5
    for model in (teacher, student):
        again = build_model(json.loads(json.dumps(describe(model))), "test").eval()
        again.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(again(z, sigma / 2, label), model(z, sigma / 2, label))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?guidance=2", "null_class"),
        ("?null_class=7&guidance=2", "5 class embedding rows, .* null_class is 7"),
        ("?prompts=p.txt", "prompts"),
        ("?guidence=2", "'guidence'"),
        ("?guidance=high", "guidance is 'high' .*; expected a finite number"),
        ("?null_class=1.5", "expected an integer"),
        ("?sigma_max=inf", "expected a finite number"),
        ("?revision=", "expected text"),
        ("?sigma_max=500", "0.01.* sigma_max is 500"),
        ("?sigma_min=1&sigma_max=0.5", "sigma_min is 1 and sigma_max is 0.5"),
    ],
)
def test_options_that_make_no_sense(load, query, message):
    with pytest.raises(PidistillError, match=message):
        load(ddim(), query, num_class_embeds=5)


@pytest.mark.parametrize(
    ("scheduler", "config", "message"),
    [
        ("DDIM", {"sample_size": None}, "sample_size is null"),
        ("DDIM", {"num_class_embeds": 0}, "num_class_embeds is 0"),
        ("DDIM", {"in_channels": 4}, "takes 4 channels and returns 3"),
        ("DDIM", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ("LCM", {}, r"LCMScheduler \(of a few-step model"),
        ("ScoreSdeVe", {}, r"ScoreSdeVeScheduler \(.* score-sde:FILE"),
        (
            "EulerDiscrete",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            "timestep_type is 'continuous'",
        ),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, "invert_sigmas is True"),
        ("EDMEuler", {"prediction_type": "v_prediction"}, "is 'v_prediction', which"),
        (
            "DPMSolverMultistep",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
            "use_flow_sigmas is True",
        ),
    ],
)
def test_networks_and_schedulers_without_a_counterpart(load, scheduler, config, message):
    ours, theirs = (config, {}) if scheduler == "DDIM" else ({}, config)
    with pytest.raises(PidistillError, match=message):
        load(getattr(diffusers, f"{scheduler}Scheduler")(**theirs), **ours)
