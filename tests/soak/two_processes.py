"""Two processes against one, by torchrun over gloo: the loss, and a process that dies.

    python tests/soak/two_processes.py [--short]

1. At the same global batch, two processes log the losses of one, and end with its weights.
2. One of the two is killed with SIGKILL; torchrun starts them again, and they end bit for bit as
   two processes that nobody killed.

Takes a few minutes on two cores. The short form is the second part, half a minute: the tests
compare several processes with one in `tests/training/test_many_processes.py`.
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


def start(processes, folder, steps):
    """Begin a run of the digits teacher in `folder`, with processes that may be restarted twice."""
    launcher = (
        f"-m torch.distributed.run --nproc-per-node {processes} --max-restarts 2 --master-port 0 "
        "--rdzv-backend c10d --rdzv-endpoint 127.0.0.1:0 "
    )
    arguments = (
        f"-m pidistill distill --teacher digits --max-train-steps {steps} --batch-size 32 "
        f"--checkpointing-steps {max(1, steps // 10)} --set logging_steps=1 "
        f"--set preview_steps=0 --out {folder}"
    )
    command = [sys.executable, *((launcher if processes > 1 else "") + arguments).split()]
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)


def finish(run, folder):
    """Wait for the end of a run, which must be a good one."""
    assert run.wait() == 0, folder.with_suffix(".log").read_text(errors="replace")[-2000:]


def losses(folder):
    """The logged losses; none if there is no log yet."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["loss"] for line in lines]


def weights(folder):
    """The weights that a run ended with."""
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def compare_curves(place, steps):
    """The largest relative difference of a loss of one process and of the two that have run."""
    finish(start(1, place / "of-1", steps), place / "of-1")
    one, two = losses(place / "of-1"), losses(place / "of-2")
    assert len(one) == len(two) == steps + 1
    return max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))


def kill_one(place, steps):
    """A run of two processes, the second of which is killed on the way; returns its last step."""
    folder = place / "killed"
    run = start(2, folder, steps)
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


def soak(short):
    """Compare, unless `short`, and kill; returns what was measured."""
    steps = 12 if short else 200
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        finish(start(2, place / "of-2", steps), place / "of-2")
        if not short:
            measured["difference"] = compare_curves(place, steps)
            print(f"losses of one and of two processes differ by {measured['difference']:.1e}")
            assert measured["difference"] < 1e-3
        measured["killed_after"] = kill_one(place, steps)
        print(f"killed after step {measured['killed_after']}, started again: the same bits")
    return measured


if __name__ == "__main__":
    print(json.dumps(soak(short="--short" in sys.argv)))
