"""`pidistill inspect`: what a teacher or a run folder is, without executing a file."""

import math
from pathlib import Path
from typing import Any

import click

from pidistill.cli.console import Out, json_option
from pidistill.paths import user_path


@click.command()
@click.argument("model", metavar="SPEC_or_DIR")
@json_option
def inspect(model: str, as_json: bool) -> None:
    """Say what a teacher (by its spec) or a run folder is; nothing in a file is executed."""
    out = Out(as_json)
    from pidistill.evaluation.sampling import open_model

    opened = open_model(model)
    facts: dict[str, Any] = {
        "name": model,
        "kind": type(opened).__name__,
        "source": opened.source,
        "sample_shape": list(opened.sample_shape),
        "num_classes": opened.num_classes,
        "sigma_min": opened.sigma_min,
        "sigma_max": opened.sigma_max,
        "sigma_data": opened.sigma_data,
        "parameters": sum(math.prod(p.shape) for p in opened.parameters()),
    }
    network = getattr(opened, "network", None)
    if network is not None:
        facts["network"] = type(network).__name__
        facts["network_config"] = network.config
        facts["precondition"] = type(opened.precondition).__name__
    facts.update(run_facts(user_path(model)))
    width = max(map(len, facts))
    for name, value in facts.items():
        out.say(f"{name.replace('_', ' '):<{width}}  {value}")
    out.result(facts)


def run_facts(folder: Path) -> dict[str, Any]:
    """What a run folder says beyond its model: provenance, progress and metrics."""
    from pidistill.files import read_json
    from pidistill.training.checkpoint import best_checkpoint
    from pidistill.training.log import read_log
    from pidistill.training.run_folder import read_config

    facts: dict[str, Any] = {}
    if (folder / "config.toml").is_file():
        config = read_config(folder)
        facts["trained_by"] = config.method.name
        facts["trained_on"] = config.teacher or config.data
        facts["seed"] = config.seed
        facts["max_train_steps"] = config.max_train_steps
        facts["weights"] = sorted(file.name for file in folder.glob("*.safetensors"))
    log = read_log(folder)
    if log:
        facts["step"] = log[-1]["step"]
    best = best_checkpoint(folder / "state")
    if best is not None:
        facts["best_checkpoint"] = str(best)
    if (folder / "metrics.json").is_file():
        facts["metrics"] = read_json(folder / "metrics.json")
    return facts
