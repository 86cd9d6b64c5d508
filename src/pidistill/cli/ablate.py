"""`pidistill ablate`: what one setting is worth, all else being equal."""

from pathlib import Path

import click

from pidistill.cli.comparing import follow_recipe, where_option
from pidistill.cli.console import Out, json_option
from pidistill.cli.train_runs import jobs_option


@click.command()
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="TOML file that names a teacher, a budget and sweeps; what is missing is trained.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=None,
    metavar="DIR",
    help="Folder of the comparison. Default: comparisons/NAME-OF-FILE.",
)
@jobs_option
@click.option(
    "--cost-repeats",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="How often the cost of a step is measured, all configurations in turn; 0: not at all.",
)
@where_option
@json_option
def ablate(
    recipe: Path,
    out: Path | None,
    jobs: int,
    cost_repeats: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Sweep settings of a method, each sweep ending in a table and a plot.

    The recipe is one of `pidistill compare` with [[sweep]] tables; runs are kept, resumed and
    shared in the same way.
    """
    follow_recipe(
        Out(as_json),
        "ablate",
        recipe,
        folder=out,
        jobs=jobs,
        cost_repeats=cost_repeats,
        device=device,
    )
