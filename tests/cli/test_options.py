"""Options of the verbs that train: those of the config, presets, files of settings, a dry run."""

import json
import re

import pytest

from pidistill import methods
from pidistill.cli import main
from pidistill.cli.distill import distill
from pidistill.cli.run import TABLES
from pidistill.presets import preset_names, preset_summary
from pidistill.training.config import RunConfig
from pidistill.training.run_folder import read_config

SMALL = ["--set", 'network={name="mlp",config={width=8,num_blocks=1}}']
RING = ["distill", "--teacher", "mixture:ring", *SMALL]
SHORT = [*RING, "--max-train-steps", "1", "--batch-size", "4"]

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
    assert main([*SHORT, *flags, "--out", str(tmp_path / "run")]) == 0
    config = read_config(tmp_path / "run").model_dump()
    assert {name: config[name] for name in FIELDS} == {n: value for n, (_, value) in FIELDS.items()}
    assert (config["torch_compile"], config["keep_best"]) == (False, False)


def test_presets_are_listed_where_they_serve(capsys):
    students, teachers = help_of("distill", capsys), help_of("train-teacher", capsys)
    for name in preset_names():
        listed = teachers if "teacher" in name else students
        assert re.search(rf"{name} +{re.escape(preset_summary(name))}", listed)
    assert "digits-teacher" not in students
    assert "default: matched; with most methods fast" in students
    assert "default: image-teacher" in teachers


def test_flags_are_above_the_file_and_the_file_above_its_base(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('base = "published"\nseed = 5\nbatch_size = 8\n[method]\nnum_nodes = 30\n')

    def config(name, *more):
        folder = tmp_path / name
        assert main([*SHORT, "--config", str(file), *more, "--out", str(folder)]) == 0
        return read_config(folder)

    run = config("run", "--seed", "6")
    assert (run.seed, run.batch_size, run.optimizer) == (6, 4, "radam")
    assert (run.method.num_nodes, run.method.derivative) == (30, "one-sided")
    run = config("fast", "--preset", "fast")
    assert (run.seed, run.optimizer, run.method.derivative) == (5, "adamw", "central")
    file.write_text("lr_end = 0.5\n")  # and without a base, above the default preset
    run = config("default")
    assert (run.lr_end, run.method.name) == (0.5, "correction")


def test_a_method_registered_later_is_known(monkeypatch, refused, tmp_path):
    monkeypatch.setattr(methods, "NAMES", (*methods.NAMES, "mine"))
    refused([*SHORT, "--method", "min", "--out", tmp_path / "run"], "did you mean 'mine'?")


DRY = ["--max-train-steps", "100", "--batch-size", "8", "--dry-run"]


def test_a_dry_run_prints_what_the_run_takes_and_writes_nothing(tmp_path, capsys):
    assert main([*RING, *DRY, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    for word in ("student", "peak", "images/s", "100 steps", "end"):
        assert word in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", [RING, ["train-teacher", "digits", *SMALL]])
def test_a_dry_run_needs_no_folder_and_gives_json(tmp_path, capsys, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    assert main([*verb, *DRY, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images_per_second"] > 0
    assert facts["end"] > "2020"
    assert list(tmp_path.iterdir()) == []
