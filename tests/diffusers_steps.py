"""D by the diffusers library: what a scheduler's own step predicts from its own network.

`python tests/diffusers_steps.py` prints how closely teachers agree, family by family.
"""

import contextlib
import inspect
import sys
import tempfile
from pathlib import Path

import torch

from pidistill import load_teacher

from diffusers_pipelines import diffusers, save

UNCLIPPED = {"clip_sample": False, "thresholding": False, "clip_denoised": False}
PREDICT_NOISE = ("dpmsolver", "sde-dpmsolver", "deis", "noise_prediction")
"""The algorithms of solvers whose `convert_model_output` is the noise."""


def opened(scheduler):
    """The same scheduler without clipping, which is no part of D."""
    known = inspect.signature(type(scheduler).__init__).parameters
    options = {key: value for key, value in UNCLIPPED.items() if key in known}
    return type(scheduler).from_config(scheduler.config, **options)


def denoised(scheduler, network, x0, noise, index):
    """Timestep, noise level and D of the library at step `index` of all its training timesteps.

    The noise level is that of `x0 + sigma noise`; D has the shape of `x0` (b, c, h, w).
    """
    scheduler = opened(scheduler)
    if "FlowMatch" in type(scheduler).__name__:
        return _of_flow(scheduler, network, x0, noise, index)
    if type(scheduler).__name__ == "PNDMScheduler":  # its step keeps no prediction: DDIM's is it
        scheduler = diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False)
    if type(scheduler).__name__ == "CMStochasticIterativeScheduler":
        sigma, t = scheduler.sigmas[index], scheduler.timesteps[index]
        x = x0 + sigma * noise
        c_skip, c_out = scheduler.get_scalings(sigma)
        scaled = x / (sigma**2 + scheduler.config.sigma_data**2).sqrt()
        return t, sigma, c_skip * x + c_out * network(scaled, t)
    scheduler.set_timesteps(scheduler.config.num_train_timesteps)
    t = scheduler.timesteps[index]
    if not hasattr(scheduler, "sigmas"):
        alpha = scheduler.alphas_cumprod[int(t)].sqrt()
        sigma = (1 - alpha**2).sqrt() / alpha
        x = alpha * (x0 + sigma * noise)
        step = scheduler.step(network(x, t), t, x)
        return t, sigma, step.pred_original_sample
    scheduler.set_begin_index(index)
    sigma = scheduler.sigmas[index]
    x = x0 + sigma * noise
    if not hasattr(scheduler, "convert_model_output"):
        output = network(scheduler.scale_model_input(x, t), t)
        return t, sigma, scheduler.step(output, t, x).pred_original_sample
    scheduler._init_step_index(t)
    if type(scheduler).__name__ == "EDMDPMSolverMultistepScheduler":
        return (
            t,
            sigma,
            scheduler.convert_model_output(network(scheduler.scale_model_input(x, t), t), sample=x),
        )
    alpha, noise_scale = scheduler._sigma_to_alpha_sigma_t(sigma)
    x = alpha * x
    D = scheduler.convert_model_output(network(x, t), sample=x)
    config = scheduler.config
    if config.get("algorithm_type") in PREDICT_NOISE or config.get("predict_x0") is False:
        D = (x - noise_scale * D) / alpha
    return t, sigma, D


def _of_flow(scheduler, network, x0, noise, index):
    s, t = scheduler.sigmas[index], scheduler.timesteps[index]
    x = (1 - s) * x0 + s * noise
    return t, s / (1 - s), x - s * network(x, t)


def agreement(teacher, unet, scheduler, indices):
    """The greatest |D - D'| / |D'| at these steps, and how many of them have a level of training.

    Both are in float64, since solvers that predict the noise lose digits of D in float32.
    Compared are timesteps of training only, within the teacher's range: between them, schedulers
    interpolate in different ways.
    """
    generator = torch.Generator().manual_seed(1)
    shape = (2, *teacher.sample_shape)
    x0, noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    channels, unet, teacher = shape[1], unet.double(), teacher.double()

    def network(x, t):
        return unet(x, t.reshape(1)).sample[:, :channels]

    errors = [0.0]
    for index in indices:
        t, sigma, theirs = denoised(scheduler, network, x0, noise, index)
        sigma = sigma.item()
        trained = not hasattr(scheduler, "alphas_cumprod") or at_trained_level(scheduler, t, sigma)
        low, high = teacher.sigma_min * (1 - 1e-5), teacher.sigma_max * (1 + 1e-5)
        if trained and low <= sigma <= high and theirs.isfinite().all():
            ours = teacher(x0 + sigma * noise, torch.full((2,), sigma, dtype=x0.dtype))
            errors.append(((ours - theirs).norm() / theirs.norm()).nan_to_num(torch.inf).item())
    return max(errors), len(errors) - 1


def at_trained_level(scheduler, t, sigma):
    """Whether a timestep and its noise level are one of training."""
    alpha_cumprod = scheduler.alphas_cumprod[round(float(t))]
    level = ((1 - alpha_cumprod) / alpha_cumprod).sqrt().item()
    return abs(t - round(float(t))) < 1e-3 and abs(sigma - level) < 1e-5 * level


EDM = "EDM Euler, EDM DPM-Solver"
FAMILIES = {
    "DDPM, DDIM, PNDM": ("DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM"),
    "Euler, Euler ancestral, LMS": ("EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete"),
    "Heun, KDPM2": ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete"),
    "DPM-Solver, DEIS, UniPC, SA-Solver": (
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "DEISMultistep",
        "UniPCMultistep",
        "SASolver",
    ),
    "flow matching": ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"),
    EDM: ("EDMEuler", "EDMDPMSolverMultistep"),
    "consistency models": ("CMStochasticIterative",),
}


@torch.no_grad()
def main():
    """Print the table of docs/teachers/diffusers.md."""
    diffusers.utils.logging.set_verbosity_error()
    print("| schedulers | prediction | timesteps | greatest error |\n|---|---|---|---|")
    for family, names in FAMILIES.items():
        plain = {"flow matching": "velocity", "consistency models": "EDM", EDM: "EDM"}.get(family)
        for kind in (plain,) if plain else ("epsilon", "v_prediction", "sample"):
            worst, count = 0.0, 0
            for name in names:
                scheduler_class = getattr(diffusers, f"{name}Scheduler")
                scheduler = scheduler_class(**({} if plain else {"prediction_type": kind}))
                with tempfile.TemporaryDirectory() as folder:
                    unet = save(Path(folder), scheduler)
                    teacher = load_teacher(f"diffusers:{folder}")
                number = scheduler.config.num_train_timesteps
                steps = range(0, number, max(1, number // 20))
                with contextlib.suppress(NotImplementedError):  # the library lacks some
                    error, number = agreement(teacher, unet, scheduler, steps)
                    worst, count = max(worst, error), count + number
            print(f"| {family} | {kind} | {count} | {worst:.1e} |")


if __name__ == "__main__":
    sys.exit(main())
