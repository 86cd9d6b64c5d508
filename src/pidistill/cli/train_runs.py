"""Training the runs of a comparison, one after the other or several at once."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pidistill.cli.console import Out
from pidistill.cli.run import train
from pidistill.library import stoppable

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from pidistill.comparison.jobs import Named
    from pidistill.comparison.plan import Plan, PlannedRun

jobs_option = click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Runs that train at once, each in a process of its own: its share of the cores, or a GPU.",
)


def train_runs(out: Out, plan: "Plan", jobs: int) -> dict[Path, str]:
    """Train the runs that are not finished; returns the errors of those that ended badly."""
    from collections import deque

    from pidistill.comparison.plan import take_run

    runs = plan.runs()
    queue = deque(
        (f"[{number}/{len(runs)}] {name}", run) for number, (name, run) in enumerate(runs, start=1)
    )
    told: set[str] = set()
    failures: dict[Path, str] = {}

    def tell(name: str, message: str) -> None:
        if name not in told:
            out.say(f"{name}: {message}")
        told.add(name)

    def take() -> "Named | None":
        return take_run(
            queue,
            plan.fingerprints,
            on_finished=lambda name: tell(name, "finished before"),
            on_held=lambda name: tell(name, "another process trains it"),
            on_broken=broken,
        )

    def broken(name: str, run: "PlannedRun", error: Exception) -> None:
        failures[run.folder] = str(error)
        tell(name, failures[run.folder])

    if jobs > 1:
        _train_at_once(out, queue, take, jobs, failures)
    else:
        _train_in_turn(out, queue, take, failures)
    return failures


def _train_in_turn(
    out: Out,
    queue: "deque[Named]",
    take: "Callable[[], Named | None]",
    failures: dict[Path, str],
) -> None:
    """Train what `take` takes out of `queue`, one run after the other, in this process."""
    from pidistill.cli.failures import one_line
    from pidistill.errors import FolderHeldError
    from pidistill.training.assemble import build_trainer

    while queue:
        taken = take()
        if taken is None:
            if queue:
                time.sleep(1.0)
            continue
        name, run = taken
        try:
            train(build_trainer(run.config, run.folder), out, name)
        except FolderHeldError:  # another process was faster
            queue.append(taken)
        except OSError:  # a full disk, a vanished drive: no other would survive it
            raise
        except Exception as error:  # the others are still worth their while
            line = one_line(error)
            if line is None:
                raise
            failures[run.folder] = line
            out.say(f"{name}: {line}")


def _train_at_once(
    out: Out,
    queue: "deque[Named]",
    take: "Callable[[], Named | None]",
    jobs: int,
    failures: dict[Path, str],
) -> None:
    """Train what `take` takes out of `queue`, `jobs` at once, in processes of their own."""
    from pidistill.comparison.jobs import run_jobs
    from pidistill.errors import PidistillError

    fatal: list[str] = []

    def images(runs: "list[PlannedRun]") -> int:
        return sum(run.config.max_train_steps * run.config.batch_size for run in runs)

    total = images([run for _, run in queue])
    shown = 0
    with (
        stoppable(out.stderr.print) as should_stop,
        out.progress(f"training {len(queue)} runs", total, "images") as advance,
    ):
        for under_way, ended in run_jobs(
            take, lambda: bool(queue), jobs, lambda: should_stop() or bool(fatal)
        ):
            for job in ended:
                if job.was_held:  # another process was faster
                    queue.append((job.name, job.run))
                    continue
                if job.was_stopped:
                    out.say(f"{job.name}: stopped, its state saved")
                    continue
                failure = job.failure()
                if job.was_fatal:
                    fatal.append(f"{job.name}: {failure}")
                    continue
                if failure is not None:
                    failures[job.run.folder] = failure
                out.say(f"{job.name}: {failure or 'done'}")
            if should_stop() or fatal:
                continue
            left = [run for _, run in queue] + [job.run for job in under_way]
            done = total - images(left) + sum(job.images for job in under_way)
            advance(max(0, done - shown), f"{len(left)} left")
            shown = max(shown, done)
        if should_stop():
            raise KeyboardInterrupt
        if fatal:
            raise PidistillError(fatal[0])
