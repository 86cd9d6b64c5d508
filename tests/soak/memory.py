"""Train for half an hour and see that the memory of the process stays flat.

    python tests/soak/memory.py [--short] [--minutes M]

Everything that a run does happens often: steps, lines of the log, checkpoints, pictures. The size
of the process (VmRSS) is taken after a fifteenth of the time, when all is warm, and from then on:
it must stay within 2%; in the short form, of seconds, within 5%.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

from pidistill.settings import parse_toml_value
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config

import forked

SETTINGS = {
    **forked.RUN,
    "network": parse_toml_value(forked.NETWORK.partition("=")[2]),
    "method": {"name": "pid"},
    "max_train_steps": 10**9,
    "batch_size": 16,
    "logging_steps": 10,
    "checkpointing_steps": 100,
    "preview_steps": 200,
}
SAMPLES = 30
"""How often the memory is measured."""


def resident() -> float:
    """The memory of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the system does not say how large the process is")


def soak(seconds: float, tolerance: float, place: Path) -> bool:
    """Train for so long; whether the memory stayed within `tolerance` of what it was when warm."""
    trainer = build_trainer(parse_config([SETTINGS]), place)
    began = time.monotonic()
    measures: list[float] = []
    due = (seconds * number / SAMPLES for number in itertools.count(2))
    next_one = next(due)
    for report in trainer.run():
        now = time.monotonic() - began
        if now < next_one:
            continue
        measures.append(resident())
        line = {"seconds": round(now), "step": report.step, "mb": round(measures[-1], 1)}
        print(json.dumps(line), flush=True)
        next_one = next(due)
        if now >= seconds:
            break
    change = max(abs(measure / measures[0] - 1) for measure in measures)
    print(
        f"{trainer.step} steps in {seconds / 60:.3g} minutes: {measures[0]:.1f} MB at first, "
        f"{measures[-1]:.1f} MB at last, never more than {100 * change:.2f}% away"
    )
    return change <= tolerance


def main() -> int:
    """Read the arguments and soak."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--minutes", type=float, default=30.0)
    arguments = parser.parse_args()
    seconds, tolerance = (6.0, 0.05) if arguments.short else (60 * arguments.minutes, 0.02)
    with forked.scratch() as place:
        return 0 if soak(seconds, tolerance, Path(place)) else 1


if __name__ == "__main__":
    sys.exit(main())
