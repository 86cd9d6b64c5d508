"""The published presets: what they say, what their page says, and what was counted for them."""

import re
from pathlib import Path

import pytest
import torch

from pidistill.files import read_json
from pidistill.methods.pid import PIDSettings
from pidistill.networks import build_network
from pidistill.settings import parse_toml_value
from pidistill.training.config import parse_config, read_preset
from pidistill.training.distributed import num_micro_batches

ROOT = Path(__file__).parent.parent
PRESETS = ("cifar10-published", "imagenet64-published")
ROW = re.compile(r"^\| `([\w.]+)` \| `(.+)` \| `(.+)` \|$", re.MULTILINE)

every_preset = pytest.mark.parametrize("name", PRESETS)


def documented(name):
    """The settings that the table of the page gives for a preset."""
    page = (ROOT / "docs" / "published-presets.md").read_text(encoding="utf-8")
    rows = ROW.findall(page)
    return {row[0]: parse_toml_value(row[1 + PRESETS.index(name)]) for row in rows}


def flat(settings):
    """Settings with dotted names for those of tables."""
    method = {f"method.{key}": value for key, value in settings.pop("method").items()}
    return {**settings, **method}


@every_preset
def test_the_page_says_what_the_preset_says(name):
    assert documented(name) == flat(read_preset(name))


@every_preset
def test_it_is_a_config_without_a_teacher(name):
    config = parse_config([read_preset(name)])
    assert config.teacher is None
    assert config.max_grad_norm is None
    assert config.network is None
    assert config.method == PIDSettings(
        derivative="one-sided",
        num_nodes=250,
        draw="nodes",
        residual="data",
        distance="lpips",
        normalise=0,
        anchored=False,
        parametrisation="linear",
    )


@pytest.mark.parametrize(
    ("name", "network", "arguments"),
    [
        (PRESETS[0], "song_unet", {"img_resolution": 32, "channel_mult": [2, 2, 2]}),
        (PRESETS[1], "dhariwal_unet", {"img_resolution": 64, "label_dim": 1000}),
    ],
)
def test_the_counts_are_of_these_runs(name, network, arguments):
    cost = read_json(ROOT / "benchmarks" / "results" / "published_cost.json")[name]
    config = parse_config([read_preset(name)])
    assert cost["images"] == config.batch_size * config.max_train_steps
    with torch.device("meta"):
        built = build_network(network, {"in_channels": 3, "out_channels": 3, **arguments})
    assert cost["network"]["parameters"] == sum(p.numel() for p in built.parameters())


@every_preset
def test_the_plans_are_what_the_trainer_does(name):
    cost = read_json(ROOT / "benchmarks" / "results" / "published_cost.json")[name]
    config = parse_config([read_preset(name)])
    assert cost["plans"].keys() == {"1", "8", "64"}
    for gpus, plan in cost["plans"].items():
        assert plan["micro_batches"] == num_micro_batches(config, int(gpus))
        assert plan["micro_batch"] * plan["micro_batches"] * int(gpus) == config.batch_size
        assert plan["bytes"] < 80e9


@every_preset
def test_the_page_on_many_gpus_has_the_plans(name):
    page = (ROOT / "docs" / "many-gpus.md").read_text(encoding="utf-8")
    plans = read_json(ROOT / "benchmarks" / "results" / "published_cost.json")[name]["plans"]
    for gpus, plan in plans.items():
        cells = [
            f"`{name}`",
            gpus,
            f"{plan['micro_batches']} x {plan['micro_batch']}",
            f"{plan['bytes'] / 1e9:.0f} GB",
            f"{plan['assumed_hours']['H100 SXM']:,}",
            f"{plan['assumed_hours']['A100 SXM']:,}",
        ]
        assert "| " + " | ".join(cells) + " |" in page
