"""Train for half an hour and see that the memory of the process stays flat.

    python tests/soak/memory.py [--short] [--number SECONDS]

Everything that a run does happens often: steps, lines of the log, checkpoints, pictures. The size
of the process (VmRSS) is taken after a fifteenth of the time, when all is warm, and from then on:
it must stay within 2%, in the first minute within 5%.
"""

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


def resident():
    """The memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def train(seconds, seed, place):
    """Train for so long; whether the memory stayed as it was when warm."""
    trainer = build_trainer(parse_config([{**SETTINGS, "seed": seed}]), place)
    began = time.monotonic()
    sizes = []
    for report in trainer.run():
        now = time.monotonic() - began
        if now < seconds * (2 + len(sizes)) / SAMPLES:
            continue
        sizes.append(resident())
        line = {"seconds": round(now), "step": report.step, "mb": round(sizes[-1], 1)}
        print(json.dumps(line), flush=True)
        if now >= seconds:
            break
    change = max(abs(size / sizes[0] - 1) for size in sizes)
    print(
        f"{trainer.step} steps in {seconds} seconds: {sizes[0]:.1f} MB at first, "
        f"{sizes[-1]:.1f} MB at last, never more than {100 * change:.2f}% away"
    )
    return change <= (0.02 if seconds > 60 else 0.05)


if __name__ == "__main__":
    sys.exit(forked.soak(__doc__, train, short=4, long=1800))
