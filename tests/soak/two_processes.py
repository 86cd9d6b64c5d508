"""Two processes against one, by torchrun over gloo: the loss, and a process that dies.

    python tests/soak/two_processes.py [--short]

1. At the same global batch, two processes log the losses of one, and end with its weights.
2. One of the two is killed with SIGKILL; torchrun starts them again, and they end bit for bit as
   two processes that nobody killed.

Takes a few minutes on two cores; the short form, which the tests run, half a minute.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(processes: int, *arguments: str) -> list[str]:
    """A command line of `processes` processes that are restarted twice at most."""
    if processes == 1:
        return [sys.executable, *arguments]
    options = f"--nproc-per-node {processes} --max-restarts 2 --master-port 0"
    rendezvous = "--rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0"
    launcher = ["-m", "torch.distributed.run", *options.split(), *rendezvous.split()]
    return [sys.executable, *launcher, *arguments]


def distil(processes: int, folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """Begin a run of the digits teacher in `folder`."""
    every = max(1, steps // 10)
    flags = f"--max-train-steps {steps} --batch-size 32 --checkpointing-steps {every}"
    more = f"--set logging_steps=1 --set preview_steps=0 --out {folder}"
    arguments = f"-m pidistill distill --teacher digits {flags} {more}".split()
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        return subprocess.Popen(
            command(processes, *arguments), env=ENVIRONMENT, stdout=log, stderr=log
        )


def finish(run: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait for the end of a run, which must be a good one."""
    log = folder.parent / f"{folder.name}.log"
    assert run.wait() == 0, log.read_text(errors="replace")[-2000:]


def losses(folder: Path) -> list[float]:
    """The logged losses; none if there is no log yet."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["loss"] for line in lines]


def weights(folder: Path) -> dict[str, bytes]:
    """The weights that a run ended with."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def compare_curves(place: Path, steps: int) -> float:
    """Runs of one and of two processes; returns the largest relative difference of a loss."""
    for processes in (1, 2):
        folder = place / f"of-{processes}"
        finish(distil(processes, folder, steps), folder)
    one, two = losses(place / "of-1"), losses(place / "of-2")
    assert len(one) == len(two) == steps + 1
    return max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))


def kill_one(place: Path, steps: int) -> int:
    """A run of two processes, the second of which is killed on the way; returns its last step."""
    folder = place / "killed"
    run = distil(2, folder, steps)
    while run.poll() is None and len(losses(folder)) < steps // 3:
        time.sleep(0.02)
    done = len(losses(folder)) - 1
    second = [
        child
        for child in psutil.Process(run.pid).children(recursive=True)
        if child.environ().get("RANK") == "1"
    ]
    assert second, "the run was over before it could be killed"
    second[0].send_signal(signal.SIGKILL)
    finish(run, folder)
    assert weights(folder) == weights(place / "of-2"), "a killed run ended elsewhere"
    assert losses(folder) == losses(place / "of-2")
    return done


def soak(short: bool) -> dict[str, float]:
    """Compare and kill; returns what was measured."""
    steps = 12 if short else 200
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        difference = compare_curves(place, steps)
        print(f"{steps} steps of one and of two processes: losses differ by {difference:.1e}")
        assert difference < 1e-3
        done = kill_one(place, steps)
        print(f"killed after step {done}, started again: the same bits")
    return {"difference": difference, "killed_after": done}


if __name__ == "__main__":
    print(json.dumps(soak(short="--short" in sys.argv)))
