"""Kill a run (SIGKILL) at random moments, start it again each time, and compare with one straight.

    python tests/soak/kills.py [--short] [--number KILLS] [--seed S]

Weights, averages, optimizer, manifest and log must be the same to the last bit. A run that ends
before all kills are spent is compared, and another one is begun.
"""

import collections
import os
import random
import signal
import sys
import time

import forked

SETTINGS = {
    "max_train_steps": 240,
    "checkpointing_steps": 4,
    "logging_steps": 1,
    "preview_steps": 10,
}
"""Most of the time is spent writing."""


def interrupted(folder):
    """What a run was doing when it was killed, by what it left behind."""
    state, log = folder / "state", folder / "metrics.jsonl"
    if not (folder / "config.toml").exists():
        return "starting"
    if any(state.glob(".step-*.tmp")):
        return "writing a checkpoint"
    if any(state.glob(".step-*.dropped")):
        return "dropping a checkpoint"
    if any(folder.glob(".*.tmp")) or any(folder.glob("previews/.*.tmp")):
        return "writing another file"
    if log.exists() and not log.read_text().endswith("\n"):
        return "writing the log"
    return "training"


def spend(kills, seed, place):
    """Spend `kills` kills; whether every run ended as the straight one."""
    draw, output = random.Random(seed), place / "output.txt"
    began = time.monotonic()
    code = forked.run(forked.distil(place / "straight", **SETTINGS), output)
    assert code == 0, output.read_text()
    longest = 0.3 * (time.monotonic() - began)
    expected = forked.remains(place / "straight")
    moments = collections.Counter()
    runs = different = 0
    while moments.total() < kills:
        folder = place / f"run-{runs}"
        while True:
            process = forked.start(forked.distil(folder, **SETTINGS), output)
            spent = moments.total() >= kills
            code = forked.finish(process, 600 if spent else draw.uniform(0, longest))
            if code is not None:
                break
            os.kill(process, signal.SIGKILL)
            forked.finish(process)
            moments[interrupted(folder)] += 1
        runs += 1
        if code != 0 or forked.remains(folder) != expected or forked.leftovers(folder):
            different += 1
            print(f"{folder} is not the straight run: exit code {code}, {output.read_text()}")
    print(f"{kills} kills in {runs} runs: {different} ended otherwise than the straight run")
    for moment, count in moments.most_common():
        print(f"  {count:4d} while {moment}")
    return different == 0


if __name__ == "__main__":
    sys.exit(forked.soak(__doc__, spend, short=4, long=100))
