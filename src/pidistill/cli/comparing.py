"""What `compare` and `ablate` share: planning, measuring, printing, writing."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pidistill.cli.console import Out, best_device
from pidistill.cli.train_runs import train_runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from pidistill.comparison.costs import Cost
    from pidistill.comparison.measure import Terms
    from pidistill.comparison.page import Comparison
    from pidistill.comparison.plan import Entry
    from pidistill.comparison.table import Row

where_option = click.option(
    "--device",
    default=None,
    metavar="NAME",
    help="Where to measure, such as cuda or cpu; runs train on an accelerator where there is one.",
)


def follow_recipe(
    out: Out,
    verb: str,
    file: Path,
    *,
    folder: Path | None,
    jobs: int,
    cost_repeats: int,
    device: str | None,
) -> None:
    """Train what a recipe's runs lack, measure all of them, and print and write the tables."""
    from pidistill.comparison.costs import measure_pace
    from pidistill.comparison.measure import Terms
    from pidistill.comparison.page import Comparison, Section
    from pidistill.comparison.plan import make_plan
    from pidistill.comparison.recipe import read_recipe
    from pidistill.data import load_data
    from pidistill.errors import PidistillError
    from pidistill.teachers import load_teacher

    recipe = read_recipe(file)
    if verb == "ablate" and not recipe.sweep:
        raise PidistillError(f"{file} has no [[sweep]]; use pidistill compare")
    if jobs > 1 and recipe.budget.seconds is not None:
        raise PidistillError(
            f"the budget is {recipe.budget}, and --jobs {jobs}: runs that train at once share the "
            "time of the machine; leave --jobs out, or give the budget in teacher evaluations"
        )
    folder = folder or Path("comparisons") / file.stem
    teacher = load_teacher(recipe.teacher)
    data = None if recipe.data is None else load_data(recipe.data)
    plan = make_plan(recipe, folder, teacher, data, measure_pace)
    teacher.to(best_device(device))
    terms = Terms(
        teacher,
        reference=recipe.reference,
        num=recipe.num_samples,
        seed=recipe.evaluation_seed,
        cache=folder,
    )
    # A reference that is not there is an error before the training, not after it.
    if recipe.reference is not None and terms.reference is None:
        out.say(
            f"no Frechet distances: no bundled classifier is for samples of shape "
            f"{teacher.sample_shape}; pidistill evaluate has other features"
        )
    failures = train_runs(out, plan, jobs)
    own, *swept = _measure(
        out, [plan.entries, *plan.sweeps.values()], terms, recipe.evaluations, failures
    )

    def comparison(costs: "dict[str, Cost]") -> Comparison:
        sections = [Section("Runs", "", own, costs)] if own else []
        sections += [
            Section(sweep.name, sweep.about, rows, costs, sweep)
            for sweep, rows in zip(recipe.sweep, swept, strict=True)
        ]
        budget = f"Every run may spend {recipe.budget}."
        return Comparison(recipe.title, budget, _seeds(recipe.seeds), sections, recipe)

    timed = own if verb == "compare" else [row for rows in [own, *swept] for row in rows]
    command = f"pidistill {verb} --recipe {file} --out {folder} --jobs {jobs}"
    command += _options(cost_repeats, device)
    _present(out, folder, comparison, terms, command, timed, cost_repeats)


def compare_folders(
    out: Out,
    folders: list[Path],
    *,
    output: Path | None,
    reference: str | None,
    num: int,
    seed: int,
    cost_repeats: int,
    device: str | None,
) -> None:
    """Measure runs that are there on the same terms, and print the table; `output` keeps it."""
    from pidistill.comparison.folders import entries_of, reference_of, teacher_of
    from pidistill.comparison.measure import Terms
    from pidistill.comparison.page import Comparison, Section

    teacher = teacher_of(folders)
    entries = entries_of(folders, teacher)
    teacher.to(best_device(device))
    reference = reference or reference_of(folders)
    if reference is None:
        out.say("no Frechet distances: name a --reference, such as digits")
    terms = Terms(teacher, reference=reference, num=num, seed=seed, cache=output)
    (rows,) = _measure(out, [entries], terms, [1, 2, 4], {})

    def comparison(costs: "dict[str, Cost]") -> Comparison:
        return Comparison(
            f"{len(folders)} runs",
            "The runs spent what the table says.",
            _seeds(sorted({run.config.seed for entry in entries for run in entry.runs})),
            [Section("Runs", "", rows, costs)],
            None,
        )

    names = " ".join(map(str, folders))
    command = f"pidistill compare {names} --num {num} --seed {seed}"
    command += f" --reference {reference}" if reference else ""
    command += _options(cost_repeats, device)
    _present(out, output, comparison, terms, command, rows, cost_repeats)


def _measure(
    out: Out,
    tables: "list[list[Entry]]",
    terms: "Terms",
    evaluations: list[int],
    failures: dict[Path, str],
) -> "list[list[Row]]":
    """The rows of every table."""
    from pidistill.comparison.table import make_row

    runs = sum(len(entry.runs) for entries in tables for entry in entries)
    total = terms.num * (1 + runs)
    with out.progress("measuring", total, "samples") as advance:
        terms.on_batch = advance
        return [
            [make_row(entry, terms, evaluations, failures) for entry in entries]
            for entries in tables
        ]


def _options(cost_repeats: int, device: str | None) -> str:
    """Options that both kinds of comparison take, as on the command line."""
    return f" --cost-repeats {cost_repeats}" + (f" --device {device}" if device else "")


def _costs(out: Out, rows: "list[Row]", repeats: int) -> "dict[str, Cost]":
    """What a step of every row costs, by its identity; rows whose runs all failed have none."""
    from pidistill.comparison.costs import Rehearsal, cost_of, rehearse_in_turn

    entries = {row.entry.identity: row.entry for row in rows if row.metrics}
    if not entries or not repeats:
        return {}
    found: dict[str, list[Rehearsal]] = {}
    broken: set[str] = set()
    configs = {identity: entry.config for identity, entry in entries.items()}
    with out.progress("timing steps", repeats * len(configs), "measurements") as advance:
        for identity, rehearsal in rehearse_in_turn(configs, repeats):
            advance(1)
            if isinstance(rehearsal, Rehearsal):
                found.setdefault(identity, []).append(rehearsal)
            elif identity not in broken:
                broken.add(identity)
                out.say(f"{entries[identity].name}: its steps cannot be timed: {rehearsal}")
    return {identity: cost_of(times) for identity, times in found.items()}


def _present(
    out: Out,
    folder: Path | None,
    comparison: "Callable[[dict[str, Cost]], Comparison]",
    terms: "Terms",
    command: str,
    timed: "list[Row]",
    cost_repeats: int,
) -> None:
    """Print the tables, and write the files where a folder is named.

    They are written before the steps of the rows `timed` are timed, and again with what that found.
    """
    from pidistill.comparison.page import as_json, legend_of, tables_of, write_files
    from pidistill.machine import machine

    provenance = {"command": command, **machine()}
    if folder is not None and cost_repeats:
        write_files(folder, comparison({}), terms, provenance)
    complete = comparison(_costs(out, timed, cost_repeats))
    for section in complete.sections:
        for cells in tables_of(section, terms):
            out.table(section.title, cells.columns, cells.lines)
    out.say(legend_of(complete, terms))
    if folder is not None:
        files = write_files(folder, complete, terms, provenance)
        out.say(f"open {files[0]}")
    out.result(as_json(complete, terms, provenance))


def _seeds(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return f"One seed, {seeds[0]}: no spread."
    return (
        f"Means over the seeds {', '.join(map(str, seeds))}, with the smallest and the largest in "
        "parentheses."
    )
