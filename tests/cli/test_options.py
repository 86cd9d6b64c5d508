"""Options of the verbs that train: those of the config, presets, files of settings, `--debug`."""

import re

import click
import pytest

from pidistill import methods
from pidistill.cli import VERBS, main, pidistill
from pidistill.cli.distill import distill
from pidistill.cli.run import TABLES
from pidistill.presets import preset_names, preset_summary
from pidistill.training.config import RunConfig
from pidistill.training.run_folder import read_config

RING = ["distill", "--teacher", "mixture:ring", "--max-train-steps", "1", "--batch-size", "4"]
SMALL = ["--set", 'network={name="mlp",config={width=8,num_blocks=1}}']

FIELDS = {
    "seed": ("3", 3),
    "batch_size": ("6", 6),
    "max_micro_batch": ("2", 2),
    "learning_rate": ("0.5", 0.5),
    "max_grad_norm": ("2", 2),
    "mixed_precision": ("bf16", "bf16"),
    "ema_rates": ("[0.5, 0.25]", [0.5, 0.25]),
    "report_to": ("none", []),
}
"""Fields of every kind: what their flags are given, and what they become."""


def help_of(verb, capsys):
    assert main([verb, "-h"]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_every_field_is_an_option_with_its_own_help(capsys):
    options = {option.name: option for option in distill.params}
    for name, field in RunConfig.model_fields.items():
        if name not in TABLES:
            assert options[name].help == " ".join(field.description.split())
    assert "--lr-warmup-steps" in help_of("distill", capsys)
    assert "--data" not in help_of("train-teacher", capsys)


def test_flags_set_their_fields(tmp_path):
    flags = ["--no-torch-compile", "--no-keep-best"]
    for name, (text, _) in FIELDS.items():
        flags += [f"--{name.replace('_', '-')}", text]
    assert main([*RING, *SMALL, *flags, "--out", str(tmp_path / "run")]) == 0
    config = read_config(tmp_path / "run").model_dump()
    assert {name: config[name] for name in FIELDS} == {n: value for n, (_, value) in FIELDS.items()}
    assert (config["torch_compile"], config["keep_best"]) == (False, False)


def test_presets_are_listed_where_they_serve(capsys):
    students, teachers = help_of("distill", capsys), help_of("train-teacher", capsys)
    for name in preset_names():
        listed = teachers if "teacher" in name else students
        assert re.search(rf"{name} +{re.escape(preset_summary(name))}", listed)
    assert "digits-teacher" not in students
    assert "default: fast" in students
    assert "default: image-teacher" in teachers


def test_flags_are_above_the_file_and_the_file_above_its_base(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('base = "published"\nseed = 5\nbatch_size = 8\n[method]\nnum_nodes = 30\n')
    arguments = [*RING, *SMALL, "--config", str(file)]
    assert main([*arguments, "--seed", "6", "--out", str(tmp_path / "run")]) == 0
    config = read_config(tmp_path / "run")
    assert (config.seed, config.batch_size, config.optimizer) == (6, 4, "radam")
    assert (config.method.num_nodes, config.method.derivative) == (30, "one-sided")
    assert main([*arguments, "--preset", "fast", "--out", str(tmp_path / "fast")]) == 0
    config = read_config(tmp_path / "fast")
    assert (config.seed, config.optimizer, config.method.derivative) == (5, "adamw", "central")


def test_a_file_without_base_is_above_the_default_preset(tmp_path):
    (tmp_path / "run.toml").write_text("lr_end = 0.5\n")
    arguments = [*RING, *SMALL, "--config", str(tmp_path / "run.toml")]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0
    config = read_config(tmp_path / "run")
    assert (config.lr_end, config.method.normalise) == (0.5, 1e-3)


def test_a_method_registered_later_is_known(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(methods, "NAMES", (*methods.NAMES, "mine"))
    assert main([*RING, "--method", "min", "--out", str(tmp_path / "run")]) == 2
    assert "did you mean 'mine'?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_debug_and_json(verb):
    command = pidistill.get_command(click.Context(pidistill), verb)
    flags = [flag for parameter in command.params for flag in parameter.opts]
    assert flags.count("--debug") == 1
    assert flags.count("--json") == 1


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_debug_shows_the_traceback_and_its_causes(way, capsys, monkeypatch):
    arguments = ["sample", "mixture:ring", "--device", "gpu7", "--out", "x.npz"]
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    if way == "environment":
        monkeypatch.setenv("PIDISTILL_DEBUG", "1")
    assert main([*arguments, *(["--debug"] if way == "flag" else [])]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("Traceback") == 2
    assert "The above exception was the direct cause" in printed.err
    assert printed.err.splitlines()[-1].startswith("error: device 'gpu7'")
