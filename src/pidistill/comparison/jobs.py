"""Training several runs of a comparison at once, each in a process of its own.

A process is `pidistill distill --out DIR --resume`, which stops, its state saved, when its standard
input ends: when this process asks for it, or is gone (`pidistill.cli.job`). A run folder is held by
the process that trains in it, so that several comparisons may share a folder, too.
"""

import collections
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO

import torch

from pidistill.comparison.plan import PlannedRun
from pidistill.training.heartbeat import read_heartbeat

POLL_SECONDS = 0.5
"""How often it is asked which processes have ended."""

HELD = 3
"""Exit code of a job whose run another process trains."""

FATAL = 4
"""Exit code of a job that met with what no other would survive: a full disk, a vanished drive."""

INTERRUPTED = 130
"""Exit code of a job that was asked to stop."""

Named = tuple[str, PlannedRun]
"""A run and what tables call it."""


@dataclasses.dataclass
class Job:
    """A run in training."""

    name: str
    run: PlannedRun
    place: int
    """Which of the places for jobs it takes, counted from 0."""
    process: "subprocess.Popen[bytes]"
    errors: IO[bytes]
    asked_to_stop: bool = False

    @property
    def images(self) -> int:
        """Samples seen, as the run's heartbeat says."""
        return int(read_heartbeat(self.run.folder).get("images", 0))

    def ask_to_stop(self) -> None:
        """Ask it to save its state and end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.asked_to_stop = True

    @property
    def was_held(self) -> bool:
        """Whether it ended since another process trains the run."""
        return self.process.returncode == HELD

    @property
    def was_fatal(self) -> bool:
        """Whether what ended it would end the others, too."""
        return self.process.returncode == FATAL

    @property
    def was_stopped(self) -> bool:
        """Whether it ended since it was asked to."""
        return self.asked_to_stop and self.process.returncode in (INTERRUPTED, -signal.SIGTERM)

    def failure(self) -> str | None:
        """Why it ended badly; None where it did not."""
        code = self.process.returncode
        if code == 0:
            return None
        if code == INTERRUPTED:
            return "it was asked to stop, and has saved its state; run the command again"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        last = lines[-1].removeprefix("error: ") if lines else "it did not say why"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}; run the command again"
        return last


def run_jobs(
    take: Callable[[], Named | None],
    is_left: Callable[[], bool],
    places: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[list[Job], list[Job]]]:
    """Train runs, `places` of them at once.

    Args:
        take: Gives the next run; None where there is none at the moment.
        is_left: Whether it may give another one later.
        places: Runs at once.
        should_stop: Whether to stop: those in training save their state, no other one is begun.

    Yields:
        Now and then, the jobs that are in training, and those that have ended since.
    """
    jobs: list[Job] = []
    free = collections.deque(range(places))
    try:
        while jobs or (is_left() and not should_stop()):
            while free and not should_stop() and (taken := take()) is not None:
                jobs.append(_start(*taken, place=free.popleft(), places=places))
            if should_stop():
                for job in jobs:
                    job.ask_to_stop()
            time.sleep(POLL_SECONDS)
            ended = [job for job in jobs if job.process.poll() is not None]
            jobs = [job for job in jobs if job not in ended]
            free.extend(job.place for job in ended)
            yield jobs, ended
            for job in ended:
                job.ask_to_stop()  # closes the pipe
                job.errors.close()
    finally:
        for job in jobs:
            job.ask_to_stop()


def _start(name: str, run: PlannedRun, *, place: int, places: int) -> Job:
    """Train `run` in a new process; it hears of Ctrl-C through its standard input only."""
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the job)
    process = subprocess.Popen(
        [sys.executable, "-m", "pidistill.cli.job", str(run.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env={**os.environ, **share_of_machine(place, places)},
        start_new_session=True,
    )
    return Job(name, run, place, process, errors)


def share_of_machine(place: int, places: int) -> dict[str, str]:
    """Environment of the job at `place` of `places`: its share of the cores, and a GPU."""
    share = {}
    if "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // places))
    count = torch.cuda.device_count()
    if count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(count)]
        share["CUDA_VISIBLE_DEVICES"] = names[place % count]  # what is named beyond is not there
    return share
