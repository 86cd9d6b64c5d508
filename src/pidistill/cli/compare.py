"""`pidistill compare`: several runs on equal terms, in one table."""

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pidistill.cli.console import (
    NOT_NEGATIVE,
    PATH,
    Out,
    best_device,
    command_line,
    device_option,
    json_option,
)
from pidistill.cli.run import train
from pidistill.files import require_writable_folder

if TYPE_CHECKING:
    from pidistill.comparison.plan import Plan
    from pidistill.comparison.table import Comparison


@click.command()
@click.argument("folders", nargs=-1, type=PATH, metavar="[DIR]...")
@click.option(
    "--recipe",
    "recipe_file",
    type=PATH,
    metavar="FILE",
    help="TOML file with a teacher, a budget, runs and sweeps; what is missing is trained.",
)
@click.option(
    "--out",
    "folder",
    type=PATH,
    metavar="DIR",
    help="Folder of the comparison. Default with --recipe: comparisons/NAME-OF-FILE.",
)
@click.option(
    "--reference",
    metavar="DATA/FILE.npz",
    help="For DIR...: what Frechet distances are taken to. Default: what they were evaluated on.",
)
@click.option("--features", metavar="NAME/DIR", help="For DIR...: as for evaluate.")
@click.option("--num", type=click.IntRange(min=2), help="For DIR...: samples.  [default: 5000]")
@click.option("--seed", type=NOT_NEGATIVE, help="For DIR...: of noise.  [default: 0]")
@click.option(
    "--cost-repeats",
    type=NOT_NEGATIVE,
    default=3,
    metavar="N",
    help="How often the cost of a step is measured, all configurations in turn; 0: never.",
)
@device_option
@json_option
def compare(
    folders: tuple[Path, ...],
    recipe_file: Path | None,
    folder: Path | None,
    reference: str | None,
    features: str | None,
    num: int | None,
    seed: int | None,
    cost_repeats: int,
    device: str | None,
    as_json: bool,
) -> None:
    """One table over runs: quality, evaluations, time and memory on equal terms.

    Either over run folders; or over the runs and sweeps of a recipe: what is missing is trained,
    what was cut is resumed, what is finished is kept. Several commands with one --out share the
    training.
    """
    from pidistill.comparison.plan import plan_folders, plan_recipe
    from pidistill.comparison.recipe import read_recipe

    if bool(folders) == (recipe_file is not None):
        raise click.UsageError("name either run folders or --recipe FILE")
    out = Out(as_json)
    if recipe_file is None:
        plan = plan_folders(
            list(folders),
            reference=reference,
            num_samples=num or 5000,
            seed=seed or 0,
            features=features or "auto",
        )
    else:
        own = {"reference": reference, "features": features, "num": num, "seed": seed}
        for name, value in own.items():
            if value is not None:
                raise click.UsageError(f"--{name} is set in the recipe; remove it here")
        folder = folder or Path("comparisons") / recipe_file.stem
        plan = plan_recipe(read_recipe(recipe_file), folder)
    if folder is not None:
        require_writable_folder(folder)
    plan.teacher.to(best_device(device))
    with tempfile.TemporaryDirectory() as scratch:
        comparison = _train_and_measure(out, plan, Path(folder or scratch) / "samples")
    _present(out, comparison, folder, cost_repeats)


def _train_and_measure(out: Out, plan: "Plan", store: Path) -> "Comparison":
    """Train what is missing, and measure everything; samples are kept in `store`."""
    from pidistill.comparison.measure import Measurement
    from pidistill.comparison.rates import choose_rates
    from pidistill.comparison.runs import PlannedRun, train_missing
    from pidistill.training.assemble import build_trainer

    def train_run(name: str, run: PlannedRun) -> None:
        train(build_trainer(run.config, run.folder), out, name, time_limit=run.seconds)

    measurement = Measurement(plan, store, out.progress)
    if plan.recipe is None:
        return measurement.comparison(plan, {})
    search = plan.recipe.learning_rates
    if search is not None:
        metric = search.judged_by(plan.reference)
        plan = choose_rates(
            plan, search, lambda at: measurement.first_metrics(at)[metric], train_run, out.say
        )
    return measurement.comparison(plan, train_missing(plan.runs(), train_run, out.say))


def _present(out: Out, comparison: "Comparison", folder: Path | None, cost_repeats: int) -> None:
    """Measure the costs of steps, print the tables, and write them to `folder`.

    They are written before the costs are measured, too, since that may be interrupted.
    """
    from pidistill.comparison.costs import median_costs
    from pidistill.comparison.page import write_files
    from pidistill.comparison.table import as_json, legend, tables
    from pidistill.machine import machine

    provenance = {"command": command_line(), **machine()}
    page = None if folder is None else write_files(folder, comparison, provenance)
    measured = {r.identity for rows in comparison.rows.values() for r in rows if r.metrics}
    configs = {
        c.identity: c.config for c in comparison.plan.configurations() if c.identity in measured
    }
    if cost_repeats:
        costs = median_costs(configs, cost_repeats, out.progress, out.say)
        comparison = dataclasses.replace(comparison, costs=costs)
        page = None if folder is None else write_files(folder, comparison, provenance)
    for section in comparison.plan.sections:
        for cells in tables(comparison, section):
            out.table(section.title, cells.columns, cells.lines)
    out.say(legend(comparison))
    if page is not None:
        out.say(f"open {page}")
    out.result(as_json(comparison, provenance))
