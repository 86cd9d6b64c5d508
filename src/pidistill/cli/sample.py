"""`pidistill sample`: pictures or arrays from a student or a teacher."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pidistill.cli.console import (
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    Out,
    batch_size_option,
    best_device,
    device_option,
    ema_option,
    json_option,
    refine_option,
    steps_option,
    teacher_option,
)
from pidistill.errors import PidistillError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from pidistill.ode import Solution


@click.command()
@click.argument("model", metavar="DIR")
@click.option("-n", "--num", type=POSITIVE, default=64)
@click.option("--seed", type=NOT_NEGATIVE, default=0)
@steps_option
@refine_option
@click.option(
    "--solver", type=click.Choice(["heun", "euler"]), help="For a teacher only; heun unless named."
)
@click.option("--label", type=int, metavar="L", help="One class for all samples.")
@click.option(
    "--out",
    "file",
    type=PATH,
    required=True,
    metavar="FILE_or_DIR",
    help=".png for a grid, .npz for the array 'samples', or a folder for numbered PNGs.",
)
@teacher_option
@batch_size_option
@ema_option
@device_option
@json_option
def sample(
    model: str,
    num: int,
    seed: int,
    steps: int | None,
    refine: int,
    solver: str | None,
    label: int | None,
    file: Path,
    teacher: str | None,
    batch_size: int,
    ema: float | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Draw samples from the run folder DIR, or from a teacher named by its spec.

    Sample i depends on the seed and i only. Without --label, labels go round all classes. Where
    samples are latents of a diffusers pipeline, its decoder makes images of them.
    """
    out = Out(as_json)
    import torch

    from pidistill.evaluation.sampling import DECODED_AT_ONCE, decoded
    from pidistill.processes import join_processes
    from pidistill.sample_files import require_writable, write_samples

    processes = join_processes()
    draw, decoder = _open(
        out, model, teacher, ema, steps, refine, solver, best_device(device), file
    )
    if processes.is_main:
        require_writable(file)
    # A batch that is cut elsewhere has other rounding errors.
    unit = batch_size if decoder is None else math.lcm(batch_size, DECODED_AT_ONCE)
    span = processes.span(num, unit)
    own: list[tuple[Tensor, int]] = []
    with out.progress("sampling", len(span), "samples") as advance:
        if span:
            x, nfe = draw(
                len(span),
                seed=seed,
                label=label,
                first=span.start,
                batch_size=batch_size,
                on_batch=advance,
            )
            own = [(decoded(x, decoder).cpu(), nfe)]
    everything = [drawn for drawns in processes.gather(own) for drawn in drawns]
    if not processes.is_main:
        return
    write_samples(file, torch.cat([x for x, _ in everything]))
    nfe = everything[0][1]
    out.say(f"{file}: {num} samples, {nfe} network evaluation(s) each, seed {seed}")
    out.result({"out": str(file), "num_samples": num, "nfe": nfe, "seed": seed})


def _open(
    out: Out,
    name: str,
    teacher: str | None,
    ema: float | None,
    steps: int | None,
    refine: int,
    solver: str | None,
    device: str,
    file: Path,
) -> "tuple[Callable[..., Solution], nn.Module | None]":
    """What draws samples for `file`, and what turns them into images if they are latents."""
    from pidistill.evaluation.sampling import TEACHER_STEPS, open_model, teacher_samples
    from pidistill.sample_files import require_drawable
    from pidistill.students.base import Student, require_refine
    from pidistill.training.run_folder import decoder_of_run

    model = open_model(name, ema).to(device)
    require_refine(model, refine)
    if isinstance(model, Student):
        if solver is not None:
            raise PidistillError(f"--solver {solver} is for teachers; {name} is a student")
        decoder: nn.Module | None = decoder_of_run(Path(name), teacher, out.say)
        steps = steps or model.num_steps
        draw: Callable[..., Solution] = partial(model.generate, steps=steps, refine=refine)
    else:
        decoder = model.decoder
        steps = steps or TEACHER_STEPS
        draw = partial(teacher_samples, model, steps=steps, solver=solver or "heun")
    if decoder is None:
        require_drawable(file, model.sample_shape)
    return draw, decoder
