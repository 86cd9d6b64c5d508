"""Commands of pidistill in forked processes: real ones, without the seconds that torch takes.

What a command prints goes to a file, so that a killed one leaves its words, too.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from pidistill.cli import VERBS, main

MODULES = (
    "pidistill.training.assemble",
    "pidistill.evaluation.protocol",
    "pidistill.teachers.mixture",
    "pidistill.teachers.native",
    "sklearn.datasets",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "PIL.PngImagePlugin",
    "matplotlib.figure",
    "filelock",
)
"""Imported once, before all forks."""

CRASHED = 70
"""Exit code of a command that ended with a traceback."""

NETWORK = 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=16}}'
RUN = {
    "teacher": "mixture:image",
    "max_train_steps": 10,
    "batch_size": 4,
    "lr_warmup_steps": 3,
    "ema_rates": [0.9, 0.5],
    "logging_steps": 3,
    "checkpointing_steps": 4,
    "checkpoints_total_limit": 2,
    "preview_steps": 5,
}
"""A small run that writes all that a run can write."""


def load():
    """Import what forks need, and leave no threads, which do not survive a fork."""
    torch.set_num_threads(1)
    for module in (*(f"pidistill.cli.{verb.replace('-', '_')}" for verb in VERBS), *MODULES):
        importlib.import_module(module)


def soak(doc, test, *, short, long):
    """Read the arguments of a soak script, and call `test(number, seed, place)`.

    Returns 0 if it returns True. `place` is a folder, in memory if possible: what is killed is a
    process, not the machine.
    """
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="as the tests run it")
    parser.add_argument("--number", type=int, help=f"default: {long}, with --short {short}")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    load()
    with tempfile.TemporaryDirectory(dir=memory) as place:
        number = arguments.number or (short if arguments.short else long)
        return 0 if test(number, arguments.seed, Path(place)) else 1


def distil(folder, **changes):
    """The command that begins the run of `RUN`, or resumes it."""
    settings = [f"{key}={json.dumps(value)}" for key, value in {**RUN, **changes}.items()]
    assignments = [word for text in (NETWORK, *settings) for word in ("--set", text)]
    return lambda: main(["distill", "--out", str(folder), "--resume", *assignments])


def start(action, output):
    """Fork a process that ends with the exit code that `action` returns; return its id."""
    process = os.fork()
    if process:
        return process
    code = CRASHED
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(process, seconds=600):
    """The exit code of a process, or minus the signal; None if it has not ended after so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.001, max(0.0, deadline - time.monotonic())))
    return None


def run(action, output):
    """Run `action` in a forked process to its end; return its exit code."""
    return finish(start(action, output))


def error_lines(output):
    """The lines with which a command was refused."""
    text = output.read_text(errors="replace")
    return [line for line in text.splitlines() if line.startswith("error: ")]


def remains(folder):
    """All that must be the same however often a run was interrupted, that is, all but times."""
    newest = max((folder / "state").glob("step-*"))
    files = [*folder.glob("*.safetensors"), *newest.glob("*.safetensors"), folder / "network.json"]
    manifest = json.loads((newest / "manifest.json").read_text())
    del manifest["values"]["seconds"], manifest["manifest_sha256"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    contents = {str(f.relative_to(folder)): f.read_bytes() for f in files}
    return {**contents, "manifest": manifest, "log": lines}


def leftovers(folder):
    """Temporary files and folders below `folder`."""
    return [str(p.relative_to(folder)) for p in folder.rglob(".*") if p.name != ".lock"]
