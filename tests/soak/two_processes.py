"""Two processes against one, by torchrun over gloo: the loss, the speed, and a process that dies.

    python tests/soak/two_processes.py [--short]

1. At the same global batch, two processes log the losses of one, and end with its weights.
2. One of the two is killed with SIGKILL; torchrun starts them anew, and the end is bit for bit that
   of two processes that nobody killed.
3. Two processes of one thread each train at least 1.7 times as fast as one process of one thread.
   This wants two idle cores, and the short form leaves it out. The ratio of the processor times,
   which other work on the machine disturbs less, is printed too.

Takes about five minutes on two cores; the short form, which the tests run, half a minute.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

SPEEDUP = 1.7
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def command(processes: int, *arguments: str) -> list[str]:
    """A command line of `processes` processes that are restarted twice at most."""
    if processes == 1:
        return [sys.executable, *arguments]
    launcher = ["torch.distributed.run", "--nproc-per-node", str(processes)]
    return [
        *[sys.executable, "-m", *launcher],
        *["--max-restarts", "2", "--master-port", "0", "--rdzv-backend", "c10d"],
        *["--rdzv-endpoint", "127.0.0.1:0", *arguments],
    ]


def distil(processes: int, folder: Path, steps: int) -> subprocess.Popen[bytes]:
    """Begin a run of the digits teacher in `folder`."""
    settings = {
        "max-train-steps": steps,
        "batch-size": 32,
        "checkpointing-steps": max(1, steps // 10),
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    arguments = ["-m", "pidistill", "distill", "--teacher", "digits", *flags]
    more = ["--set", "logging_steps=1", "--set", "preview_steps=0", "--out", str(folder)]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        return subprocess.Popen(
            command(processes, *arguments, *more), env=ENVIRONMENT, stdout=log, stderr=log
        )


def finish(run: "subprocess.Popen[bytes]", folder: Path) -> None:
    """Wait for the end of a run, which has to be a good one."""
    log = folder.parent / f"{folder.name}.log"
    assert run.wait() == 0, log.read_text(errors="replace")[-2000:]


def losses(folder: Path) -> list[float]:
    """The logged losses; none where there is no log yet."""
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


def speed(processes: int, steps: int, batch_size: int) -> dict[str, float]:
    """Wall and processor seconds of `steps` steps, in the slowest of the processes."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "speed.json"
        arguments = [__file__, "--work", str(file), str(steps), str(batch_size)]
        subprocess.run(command(processes, *arguments), env=ENVIRONMENT, check=True)
        result: dict[str, float] = json.loads(file.read_text())
        return result


def work(file: Path, steps: int, batch_size: int) -> None:
    """In a process of its own: time steps, and write what they took."""
    import torch

    from pidistill.training.assemble import build_trainer
    from pidistill.training.config import parse_config, read_preset

    torch.set_num_threads(1)
    settings = {"teacher": "digits", "batch_size": batch_size}
    trainer = build_trainer(parse_config([read_preset("fast"), settings]), Path("nowhere"))
    for _ in range(3):
        trainer.train_step()
    trainer.processes.wait()
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        trainer.train_step()
    taken = (time.perf_counter() - wall, time.process_time() - processor)
    everywhere = trainer.processes.gather(taken)
    if trainer.processes.is_main:
        slowest = [max(times) for times in zip(*everywhere, strict=True)]
        file.write_text(json.dumps({"wall": slowest[0], "processor": slowest[1]}))


def soak(short: bool) -> dict[str, Any]:
    """Do all three, or the first two in the short form; returns what was measured."""
    steps = 12 if short else 200
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        difference = compare_curves(place, steps)
        print(f"{steps} steps of one and of two processes: losses differ by {difference:.1e}")
        assert difference < 1e-3
        done = kill_one(place, steps)
        print(f"killed after step {done}, started anew: the same bits")
    measured = {"difference": difference, "killed_after": done}
    return measured if short else {**measured, **compare_speed()}


def compare_speed(steps: int = 40, batch_size: int = 1024) -> dict[str, float]:
    """How many times as fast two processes are, by the clock and by processor time."""
    one, two = (speed(processes, steps, batch_size) for processes in (1, 2))
    ratios = {key: one[key] / two[key] for key in one}
    print(
        f"{steps} steps of {batch_size}: two processes are {ratios['wall']:.2f} times as fast, "
        f"{ratios['processor']:.2f} by processor time"
    )
    assert ratios["wall"] >= SPEEDUP, f"expected at least {SPEEDUP} times; are two cores idle?"
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="as the tests run it")
    parser.add_argument("--work", nargs=3, metavar=("FILE", "STEPS", "BATCH"), default=None)
    arguments = parser.parse_args()
    if arguments.work is not None:
        file, steps, batch_size = arguments.work
        work(Path(file), int(steps), int(batch_size))
        return
    print(json.dumps(soak(arguments.short)))


if __name__ == "__main__":
    main()
