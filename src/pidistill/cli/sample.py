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
    counted,
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

    from pidistill.denoiser import Denoiser
    from pidistill.ode import Solution
    from pidistill.students.base import Student


@click.command()
@click.argument("model", metavar="DIR")
@click.option("-n", "--num", type=POSITIVE, default=64, help="Number of samples.")
@click.option("--seed", type=NOT_NEGATIVE, default=0, help="Seed of the noise.")
@steps_option
@refine_option
@click.option(
    "--solver", type=click.Choice(["heun", "euler"]), help="For teachers only; default heun."
)
@click.option(
    "--label",
    metavar="L,...",
    help="Classes in turn, by number or name, such as 3,4; -1 for no label; default: all.",
)
@click.option("--columns", type=POSITIVE, help="Columns of a grid; by default, classes line up.")
@click.option(
    "--out",
    "file",
    type=PATH,
    required=True,
    metavar="FILE_or_DIR",
    help=".png for a grid (of points in the plane: a scatter plot), .npz for the array 'samples', "
    "or a folder for numbered PNGs.",
)
@teacher_option
@batch_size_option
@ema_option
@device_option
@click.option(
    "--torch-compile",
    "compiles",
    is_flag=True,
    help="Compile the network first: worth it for many samples.",
)
@json_option
def sample(
    model: str,
    num: int,
    seed: int,
    steps: int | None,
    refine: int,
    solver: str | None,
    label: str | None,
    columns: int | None,
    file: Path,
    teacher: str | None,
    batch_size: int,
    ema: float | None,
    device: str | None,
    compiles: bool,
    as_json: bool,
) -> None:
    """Draw samples from the run folder DIR, or from a teacher named by its spec.

    Sample i depends on the seed and i only. Its label is the next one of --label in turn. Latents
    of a diffusers pipeline are decoded into images.
    """
    out = Out(as_json)
    import torch

    from pidistill.evaluation.sampling import DECODED_AT_ONCE, decoded
    from pidistill.images import columns_by_class
    from pidistill.processes import join_processes
    from pidistill.sample_files import require_writable, write_samples

    processes = join_processes()
    opened, draw, decoder = _open(
        out, model, teacher, ema, steps, refine, solver, best_device(device), file, compiles
    )
    classes = _classes(opened, label)
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
                label=None if classes is None else _in_turn(classes, span),
                first=span.start,
                batch_size=batch_size,
                on_batch=advance,
            )
            own = [(decoded(x, decoder).cpu(), nfe)]
    everything = [drawn for drawns in processes.gather(own) for drawn in drawns]
    if not processes.is_main:
        return
    columns = columns or columns_by_class(num, len(classes or range(opened.num_classes)))
    write_samples(file, torch.cat([x for x, _ in everything]), columns)
    each = counted(nfe := everything[0][1], "network evaluation")
    out.say(f"{file}: {counted(num, 'sample')}, {each} each, seed {seed}")
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
    compiles: bool,
) -> "tuple[Student | Denoiser, Callable[..., Solution], nn.Module | None]":
    """A model, what draws its samples for `file`, and what makes images of them if need be."""
    from pidistill.evaluation.sampling import TEACHER_STEPS, open_model, teacher_samples
    from pidistill.sample_files import require_drawable
    from pidistill.students.base import Student, require_refine
    from pidistill.training.distributed import compile_network
    from pidistill.training.run_folder import decoder_of_run

    model = open_model(name, ema).to(device)
    require_refine(model, refine)
    if compiles:
        compile_network(model)
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
    return model, draw, decoder


def _classes(model: "Student | Denoiser", text: str | None) -> list[int] | None:
    """The labels that `--label` names; None for all."""
    from pidistill.students.labels import label_of

    if text is None or (text == "all" and "all" not in model.class_names):
        return None
    if text in model.class_names:
        return [label_of(model, text)]
    return [label_of(model, part.strip()) for part in text.split(",")]


def _in_turn(classes: list[int], span: range) -> "Tensor":
    """Labels of the samples in `span`, which go round `classes`."""
    import torch

    return torch.tensor([classes[i % len(classes)] for i in span])
