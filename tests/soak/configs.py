"""Random config files: each runs, or is refused by one clear line that leaves nothing behind.

    python tests/soak/configs.py [--short] [--number N] [--seed S]

A config is drawn that should run, or nearly so, and then up to three things are done to it: a value
of another kind or size, a key that there is not, a key left out, a table in the place of a value.
What it holds goes through TOML and the command line, in a process of its own.
"""

import argparse
import collections
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import hypothesis
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pidistill.cli import main as pidistill

import forked

MEMORY = 12 * 2**30
"""Address space of a command, in bytes: a config must not take the machine with it."""
PATIENCE = 400.0
"""Seconds that a command may take; almost all take less than one."""
LONGEST = 1000
"""Characters of a line that is still clear."""
STOPPED = ("the loss is", "is not finite", "out of memory")
"""A run that was begun may end so, in one line, with its folder left."""

small = st.integers(1, 6)
shares = st.floats(0, 0.99)
distances = st.sampled_from(["l2", "l1", "pseudo-huber", "lpips"])
solvers = st.sampled_from(["heun", "euler"])

SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**63 - 1),
    "batch_size": small,
    "gradient_accumulation_steps": st.integers(1, 3),
    "mixed_precision": st.sampled_from(["no", "bf16"]),
    "optimizer": st.sampled_from(["adamw", "radam"]),
    "learning_rate": st.floats(1e-6, 1),
    "adam_beta1": shares,
    "adam_beta2": shares,
    "adam_weight_decay": st.floats(0, 1),
    "lr_scheduler": st.sampled_from(["constant", "linear", "cosine"]),
    "lr_warmup_steps": st.integers(0, 10),
    "lr_end": st.floats(0, 1),
    "max_grad_norm": st.floats(1e-3, 10),
    "ema_rates": st.lists(
        st.sampled_from([0.5, 0.9, 0.99, 0.999]), min_size=1, max_size=3, unique=True
    ),
    "ema_warmup": st.booleans(),
    "logging_steps": small,
    "checkpointing_steps": small,
    "checkpoints_total_limit": small,
    "keep_best": st.booleans(),
    "preview_steps": st.integers(0, 3),
}
METHODS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "pid": {
        "derivative": st.sampled_from(["one-sided", "central", "jvp"]),
        "step": st.floats(1e-3, 2),
        "num_nodes": st.integers(2, 300),
        "draw": st.sampled_from(["nodes", "rho", "log"]),
        "residual": st.sampled_from(["data", "velocity"]),
        "distance": distances,
        "normalise": st.floats(0, 1),
        "anchored": st.booleans(),
    },
    "boot": {
        "num_nodes": st.integers(2, 300),
        "boundary_weight": st.floats(0, 2),
        "distance": distances,
        "anchored": st.booleans(),
    },
    "consistency": {
        "num_nodes": st.integers(2, 40),
        "mu": shares,
        "solver": solvers,
        "distance": distances,
    },
    "progressive": {
        "start_steps": st.sampled_from([2, 4, 8, 6]),
        "weight": st.sampled_from(["uniform", "truncated-snr"]),
        "distance": distances,
    },
    "knowledge": {
        "num_pairs": st.integers(1, 8),
        "pairs_seed": st.integers(0, 5),
        "pairs_batch_size": small,
        "steps": st.integers(2, 4),
        "solver": solvers,
        "distance": distances,
    },
    "denoising": {"p_mean": st.floats(-2, 2)},
}
COSTLY = {"num_pairs", "model_channels", "max_train_steps", "network", "width"}
"""Keys whose defaults take minutes: they are always there."""
TEACHERS = ["mixture:ring", "mixture:image", "digits"]
NETWORKS = {
    "mlp": {"width": st.integers(1, 24), "num_blocks": st.integers(0, 2)},
    "song_unet": {
        "model_channels": st.sampled_from([4, 8, 7]),
        "channel_mult": st.sampled_from([[1], [1, 1], [1, 1, 1, 1, 1, 1]]),
        "num_blocks": st.just(1),
        "attn_resolutions": st.sampled_from([[], [4]]),
    },
}
junk = st.one_of(
    st.booleans(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.0, -0.5, 1e300, 5e-324]),
    st.sampled_from([float("inf"), float("-inf"), float("nan")]),
    st.sampled_from(
        ["", "3", "true", "nan", "../..", "~nobody/x", "~", "\x00", "a\nb", "ß", "x" * 5000]
    ),
    st.sampled_from(["digits", "native:.", "native:/", "folder:/proc/self/x", "edm:/dev/null"]),
    st.text(max_size=8),
    st.dates(),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers() | st.booleans(), max_size=2),
)
keys = st.text(max_size=6) | st.sampled_from(["learning_rat", "method.name", "Network", "steps"])


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A config that should run, and what is then done to it."""
    name = draw(st.sampled_from(sorted(METHODS)))
    config: dict[str, Any] = draw(st.fixed_dictionaries({}, optional=SETTINGS))
    keys_of = METHODS[name]
    always = {key: keys_of[key] for key in keys_of.keys() & COSTLY}
    free = {key: values for key, values in keys_of.items() if key not in COSTLY}
    method = draw(st.fixed_dictionaries({"name": st.just(name), **always}, optional=free))
    architecture = draw(st.sampled_from([*NETWORKS, "mlp", "mlp"]))
    arguments = draw(st.fixed_dictionaries(NETWORKS[architecture]))
    config |= {"teacher": draw(st.sampled_from(TEACHERS)), "max_train_steps": draw(small)}
    config |= {"method": method, "network": {"name": architecture, "config": arguments}}
    if name in ("consistency", "progressive"):
        config |= {"data": "digits", "teacher": "digits"}
    for _ in range(draw(st.integers(0, 3))):
        damage(draw, config)
    return config


def damage(draw: st.DrawFn, config: dict[str, Any]) -> None:
    """Do one thing to a config, or to a table in it."""
    tables = [config, *(table for table in config.values() if isinstance(table, dict))]
    tables += [t["config"] for t in tables[1:] if isinstance(t.get("config"), dict)]
    table = draw(st.sampled_from(tables))
    how = draw(st.sampled_from(["value", "value", "key", "left out"]))
    if how == "key" or not table:
        table[draw(keys)] = draw(junk)
    elif how == "left out":
        table.pop(draw(st.sampled_from(sorted(table.keys() - COSTLY) or ["nothing"])), None)
    else:
        table[draw(st.sampled_from(sorted(table)))] = draw(junk)


class Soak:
    """Tries configs, and counts how they end."""

    def __init__(self, place: Path) -> None:
        """Work in `place`."""
        forked.load_everything()
        self.place, self.output = place, place / "output.txt"
        self.ends: collections.Counter[str] = collections.Counter()

    def attempt(self, config: dict[str, Any]) -> None:
        """Run a config, and note whether it ended as it should."""
        file, folder = self.place / "config.toml", self.place / "deep" / "run"
        try:
            text = tomli_w.dumps(config)
        except ValueError:  # of no TOML: an integer of too many digits
            text = f"seed = {'1' * 5000}\n"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))

        def command() -> int:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            return pidistill(["distill", "--config", str(file), "--out", str(folder)])

        process = forked.start(command, self.output)
        code = forked.finish_within(process, PATIENCE)
        if code is None:
            os.kill(process, signal.SIGKILL)
            forked.finish(process)
        end = self.end(code, folder)
        self.ends[end] += 1
        if end == "WRONG":
            print(
                f"{text}\nexit code {code}\n{self.output.read_text(errors='replace')}", flush=True
            )
        shutil.rmtree(self.place / "deep", ignore_errors=True)

    def end(self, code: int | None, folder: Path) -> str:
        """How the command ended."""
        refusals = forked.error_lines(self.output)
        if code == 0 and not refusals and (folder / "student.safetensors").is_file():
            return "ran"
        if code == 2 and len(refusals) == 1 and len(refusals[0]) < LONGEST:
            if any(words in refusals[0] for words in STOPPED):
                return "stopped"
            if not folder.exists():
                return "refused"
        return "WRONG"


def soak(number: int, seed: int, place: Path) -> bool:
    """Try so many configs; whether all of them ended as they should."""
    soaked = Soak(place)

    @hypothesis.seed(seed)
    @settings(
        max_examples=number,
        deadline=None,
        derandomize=False,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(configs())
    def every_config_runs_or_is_refused(config: dict[str, Any]) -> None:
        soaked.attempt(config)

    every_config_runs_or_is_refused()
    told = ", ".join(f"{count} {end}" for end, count in soaked.ends.most_common())
    print(f"{soaked.ends.total()} configs: {told}")
    return soaked.ends["WRONG"] == 0


def main() -> int:
    """Read the arguments and soak."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--number", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    number = arguments.number or (25 if arguments.short else 500)
    with forked.scratch() as place:
        return 0 if soak(number, arguments.seed, Path(place)) else 1


if __name__ == "__main__":
    sys.exit(main())
