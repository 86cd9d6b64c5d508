"""`pidistill train-features`: a feature network for the metrics of one's own data."""

from pathlib import Path

import click

from pidistill.cli.console import (
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    Out,
    best_device,
    device_option,
    json_option,
)
from pidistill.errors import PidistillError
from pidistill.files import require_writable_folder
from pidistill.report.numbers import figures


@click.command()
@click.argument("data", metavar="DATA")
@click.option("--out", "folder", type=PATH, required=True, metavar="DIR", help="A new folder.")
@click.option("--max-train-steps", type=POSITIVE, default=1500, help="Optimizer steps.")
@click.option("--batch-size", type=POSITIVE, default=128, help="Images per step.")
@click.option("--seed", type=NOT_NEGATIVE, default=0)
@device_option
@json_option
def train_features(
    data: str,
    folder: Path,
    max_train_steps: int,
    batch_size: int,
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Train a small feature network on DATA, for 'evaluate --features DIR'.

    With labels it is a classifier; without, an encoder trained to recognise an image in another
    view (VICReg). A tenth of the images is held out, to say how good it is.
    """
    out = Out(as_json)
    from pidistill.data import load_data
    from pidistill.evaluation.features.trained import save_features
    from pidistill.evaluation.features.training import train_features as train

    if folder.exists() and any(folder.iterdir()):
        raise PidistillError(f"{folder} is not empty; choose another folder")
    images = load_data(data, out.progress)
    require_writable_folder(folder)
    with out.progress("training", max_train_steps, "steps") as advance:
        network = train(
            images,
            max_train_steps=max_train_steps,
            batch_size=batch_size,
            seed=seed,
            device=best_device(device),
            on_step=advance,
        )
    save_features(folder, network)
    facts = network.description.facts
    for key in ("held_out_accuracy", "held_out_retrieval", "split_half_frechet_distance"):
        if key in facts:
            out.say(f"{key.replace('_', ' ')}: {figures(facts[key])}")
    out.say(f"next: pidistill evaluate RUN --reference {data} --features {folder}")
    out.result({"out": str(folder), **facts})
