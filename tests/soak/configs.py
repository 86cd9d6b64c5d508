"""Random config files: each runs, or is refused by one clear line that leaves nothing behind.

    python tests/soak/configs.py [--short] [--number CONFIGS] [--seed S]

A config is drawn that should run, or nearly so, and then up to three things are done to it: a value
of another type or size, an unknown key, a key left out, a table in the place of a value. It goes
through TOML and the command line, in a forked process.
"""

import collections
import os
import resource
import shutil
import signal
import sys
import typing

import hypothesis
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pidistill.cli import main as pidistill
from pidistill.methods import NAMES, method_class
from pidistill.training.config import RunConfig

import forked

MEMORY = 12 * 2**30
"""Address space of a command, in bytes: a config must not take the machine with it."""
PATIENCE = 400.0
"""Seconds that a command may take; almost all take less than one."""
LONGEST = 1000
"""Characters of a line that is still clear."""
STOPPED = ("the loss is", "is not finite", "out of memory")
"""A run that was begun may end so, in one line, with its folder left."""

COSTLY = {
    "max_train_steps": st.integers(1, 6),
    "num_pairs": st.integers(1, 8),
    "start_steps": st.sampled_from([2, 4, 8, 6]),
}
"""Keys whose defaults take minutes: they are always there."""
OTHERS = {
    "ema_rates": st.lists(st.sampled_from([0.5, 0.9, 0.99]), min_size=1, max_size=3, unique=True),
    "mixed_precision": st.sampled_from(["no", "bf16"]),
    "torch_compile": st.just(False),
    "num_nodes": st.integers(2, 40),
    "steps": st.integers(2, 4),
}
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


def values(field):
    """Values of a setting that are within its bounds; None for those that are not plain."""
    kinds = [field.annotation, *typing.get_args(field.annotation)]
    low = max(
        (getattr(bound, "ge", getattr(bound, "gt", 0)) for bound in field.metadata), default=0
    )
    if typing.get_origin(field.annotation) is typing.Literal:
        return st.sampled_from(kinds[1:])
    if bool in kinds:
        return st.booleans()
    if int in kinds:
        return st.integers(low, low + 6)
    return st.floats(low, low + 1, exclude_min=True, exclude_max=True) if float in kinds else None


def table(draw, model):
    """Some settings of a model, and all of those that are costly."""
    known = {name: values(field) for name, field in model.model_fields.items()}
    known |= {name: strategy for name, strategy in OTHERS.items() if name in known}
    always = {name: strategy for name, strategy in COSTLY.items() if name in known}
    free = {name: s for name, s in known.items() if s is not None and name not in always}
    drawn = draw(st.fixed_dictionaries(always, optional=free))
    return drawn


@st.composite
def configs(draw):
    """A config that should run, and what is then done to it."""
    name = draw(st.sampled_from(sorted(NAMES)))
    architecture = draw(st.sampled_from([*NETWORKS, "mlp", "mlp"]))
    arguments = draw(st.fixed_dictionaries(NETWORKS[architecture]))
    config = {
        **table(draw, RunConfig),
        "teacher": draw(st.sampled_from(["mixture:ring", "mixture:image", "digits"])),
        "method": {**table(draw, method_class(name).Settings), "name": name},
        "network": {"name": architecture, "config": arguments},
    }
    if name in ("consistency", "progressive"):
        config |= {"data": "digits", "teacher": "digits"}
    for _ in range(draw(st.integers(0, 3))):
        damage(draw, config)
    return config


def damage(draw, config):
    """Do one thing to a config, or to a table in it."""
    tables = [config, *(table for table in config.values() if isinstance(table, dict))]
    tables += [t["config"] for t in tables[1:] if isinstance(t.get("config"), dict)]
    table = draw(st.sampled_from(tables))
    how = draw(st.sampled_from(["value", "value", "key", "left out"]))
    if how == "key" or not table:
        table[draw(keys)] = draw(junk)
    elif how == "left out":
        kept = {*COSTLY, "network", "width", "model_channels"}
        table.pop(draw(st.sampled_from(sorted(table.keys() - kept) or ["nothing"])), None)
    else:
        table[draw(st.sampled_from(sorted(table)))] = draw(junk)


def attempt(config, place):
    """Run a config; how it ended."""
    file, folder, output = place / "config.toml", place / "deep" / "run", place / "output.txt"
    try:
        text = tomli_w.dumps(config)
    except ValueError:  # an integer of too many digits for TOML
        text = f"seed = {'1' * 5000}\n"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))

    def command():
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        return pidistill(["distill", "--config", str(file), "--out", str(folder)])

    process = forked.start(command, output)
    code = forked.finish(process, PATIENCE)
    if code is None:
        os.kill(process, signal.SIGKILL)
        forked.finish(process)
    end = how_it_ended(code, forked.error_lines(output), folder)
    if end == "WRONG":
        print(f"{text}\nexit code {code}\n{output.read_text(errors='replace')}", flush=True)
    shutil.rmtree(place / "deep", ignore_errors=True)
    return end


def how_it_ended(code, refusals, folder):
    """A word for the end of a command."""
    if code == 0 and not refusals and (folder / "student.safetensors").is_file():
        return "ran"
    if code == 2 and len(refusals) == 1 and len(refusals[0]) < LONGEST:
        if any(words in refusals[0] for words in STOPPED):
            return "stopped"
        if not folder.exists():
            return "refused"
    return "WRONG"


def attempt_many(number, seed, place):
    """Try so many configs; whether all of them ended as they should."""
    ends = collections.Counter()

    @hypothesis.seed(seed)
    @settings(
        max_examples=number,
        deadline=None,
        derandomize=False,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(configs())
    def every_config_runs_or_is_refused(config):
        ends[attempt(config, place)] += 1

    every_config_runs_or_is_refused()
    told = ", ".join(f"{count} {end}" for end, count in ends.most_common())
    print(f"{ends.total()} configs: {told}")
    return ends["WRONG"] == 0


if __name__ == "__main__":
    sys.exit(forked.soak(__doc__, attempt_many, short=15, long=500))
