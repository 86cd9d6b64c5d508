"""`pidistill pairs`: noise and the teacher's solutions from it, for knowledge distillation."""

from pathlib import Path

import click

from pidistill.cli.console import Out, best_device, device_option, json_option, stoppable


@click.command()
@click.option(
    "--teacher", required=True, metavar="SPEC", help="digits, glyphs, mixture:NAME, or a path."
)
@click.option("--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("-n", "--num", type=click.IntRange(min=1), default=20_000, show_default=True)
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=40,
    show_default=True,
    metavar="K",
    help="Nodes of the solution.",
)
@click.option("--solver", type=click.Choice(["heun", "euler"]), default="heun", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Pairs solved for at once.",
)
@device_option
@json_option
def pairs(
    teacher: str,
    folder: Path,
    num: int,
    steps: int,
    solver: str,
    seed: int,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Solve a teacher's equation from NUM noises and keep the pairs in DIR.

    Pair i depends on the seed and i only. Pairs that are there are kept, so that the same command
    goes on where it was cut, and makes more when NUM is larger. Runs share them:

    pidistill distill --method knowledge --set method.pairs=DIR ...
    """
    out = Out(as_json)
    from pidistill.data.pairs import describe_pairs, make_pairs, open_pairs, share_of_pairs
    from pidistill.numerics import set_numerics
    from pidistill.processes import join_processes
    from pidistill.teachers import absolute_spec, load_teacher

    processes = join_processes()
    set_numerics()
    spec = absolute_spec(teacher)
    opened = load_teacher(spec).to(best_device(device))
    manifest = describe_pairs(opened, spec, solver=solver, steps=steps, seed=seed)
    open_pairs(folder, manifest, processes)
    share, seen = share_of_pairs(num, processes), 0
    with stoppable(out) as should_stop, out.progress("solving", share, "pairs") as advance:
        for done in make_pairs(
            folder, opened, manifest, num, batch_size=batch_size, processes=processes
        ):
            advance(done - seen)
            seen = done
            if should_stop():
                raise KeyboardInterrupt
    out.say(f"{folder} holds {num} pairs of {teacher}")
    out.say(
        f"next: pidistill distill --teacher {teacher} --method knowledge "
        f"--set method.num_pairs={num} --set method.pairs={folder} --out DIR"
    )
    out.result({"out": str(folder), "num_pairs": num, "seed": seed})
