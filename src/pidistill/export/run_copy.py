"""The part of a run folder that others need: what samples, and what it was trained with.

The state for resuming and the previews stay behind, and local folders are cut from its texts.
"""

import shutil
from pathlib import Path

import tomli_w

from pidistill.export.card import Provenance, without_folders_in
from pidistill.files import require_no_way_out, write_json, write_text
from pidistill.model_folder import MODEL_FILE, read_description


def write_run(folder: Path, run: Path, provenance: Provenance) -> None:
    """Write into `folder` what `pidistill sample` needs of the run folder `run`, and its records.

    The weights that `provenance` names are the only ones, and the default. Raises `PidistillError`
    when the run has links that lead out of it: what they show might be published.
    """
    require_no_way_out(run)
    description = without_folders_in(read_description(run))
    write_json(folder / MODEL_FILE, {**description, "weights": provenance.weights})
    shutil.copyfile(run / provenance.weights, folder / provenance.weights)
    if provenance.config:
        write_text(folder / "config.toml", tomli_w.dumps(provenance.config))
    if (run / "metrics.jsonl").is_file():
        shutil.copyfile(run / "metrics.jsonl", folder / "metrics.jsonl")
    if provenance.metrics and provenance.weights == provenance.measured_weights:
        write_json(folder / "metrics.json", provenance.metrics)
