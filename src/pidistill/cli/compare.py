"""`pidistill compare`: several runs on equal terms, in one table."""

from pathlib import Path

import click

from pidistill.cli.comparing import compare_folders, follow_recipe, where_option
from pidistill.cli.console import Out, json_option
from pidistill.cli.train_runs import jobs_option


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[DIR]...")
@click.option(
    "--recipe",
    "recipe_file",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="TOML file that names a teacher, a budget and runs; what is missing is trained.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="Folder of the comparison. Default with --recipe: comparisons/NAME-OF-FILE.",
)
@click.option(
    "--reference",
    default=None,
    metavar="DATA/FILE.npz",
    help="For folders: what Frechet distances are taken to. Default: what they were evaluated on.",
)
@click.option(
    "--num", type=click.IntRange(min=2), default=None, help="For folders: samples.  [default: 5000]"
)
@click.option("--seed", type=click.IntRange(min=0), default=None, help="For folders.  [default: 0]")
@jobs_option
@click.option(
    "--cost-repeats",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="N",
    help="How often the cost of a step is measured, all [[run]]s in turn; 0: not at all.",
)
@where_option
@json_option
def compare(
    folders: tuple[Path, ...],
    recipe_file: Path | None,
    out: Path | None,
    reference: str | None,
    num: int | None,
    seed: int | None,
    jobs: int,
    cost_repeats: int,
    device: str | None,
    as_json: bool,
) -> None:
    """One table over runs: quality, evaluations, time and memory on equal terms.

    Either over run folders that are there, measured with the same noise and reference; or over the
    runs of a recipe: what is missing is trained, what was cut is resumed, what is finished is kept.
    """
    from pidistill.errors import PidistillError

    if bool(folders) == (recipe_file is not None):
        raise PidistillError("name either run folders or --recipe FILE")
    if recipe_file is None:
        if jobs > 1:
            raise PidistillError("--jobs is for a --recipe: nothing is trained in run folders")
        compare_folders(
            Out(as_json),
            list(folders),
            output=out,
            reference=reference,
            num=5000 if num is None else num,
            seed=seed or 0,
            cost_repeats=cost_repeats,
            device=device,
        )
        return
    for name, value in (("--reference", reference), ("--num", num), ("--seed", seed)):
        if value is not None:
            raise PidistillError(f"{name} is set in the recipe; leave it out")
    follow_recipe(
        Out(as_json),
        "compare",
        recipe_file,
        folder=out,
        jobs=jobs,
        cost_repeats=cost_repeats,
        device=device,
    )
