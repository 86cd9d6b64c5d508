"""`pidistill export`: a student for use without pidistill."""

from pathlib import Path
from typing import Any

import click

from pidistill.cli.console import PATH, Out, ema_option, json_option


@click.command()
@click.argument("folder", type=PATH, metavar="DIR")
@click.option(
    "--to",
    type=click.Choice(["diffusers", "onnx", "run"]),
    required=True,
    help="A folder for DiffusionPipeline, an ONNX file, or the part of DIR that others need.",
)
@click.option(
    "--out",
    "path",
    type=PATH,
    required=True,
    metavar="PATH",
    help="A new or empty folder; for onnx a new file FILE.onnx.",
)
@ema_option
@click.option(
    "--license",
    "licence",
    metavar="NAME",
    help="Licence of the teacher, for the model card, such as cc-by-nc-sa-4.0.",
)
@click.option(
    "--push-to-hub",
    "repo_id",
    metavar="OWNER/NAME",
    help="Also upload it, with its card, to this repository of the Hugging Face hub.",
)
@click.option(
    "--private/--public", default=True, help="Who sees a repository that --push-to-hub makes."
)
@json_option
def export(
    folder: Path,
    to: str,
    path: Path,
    ema: float | None,
    licence: str | None,
    repo_id: str | None,
    private: bool,
    as_json: bool,
) -> None:
    """Export the student in the run folder DIR.

    A diffusers folder opens by DiffusionPipeline.from_pretrained(PATH, trust_remote_code=True)
    where pidistill is not installed. An ONNX file takes any batch size, and is checked against
    torch where onnxruntime is installed.
    """
    out = Out(as_json)
    from pidistill.export.export import export_student
    from pidistill.export.hub import push, require_repo_id

    if repo_id is not None:
        require_repo_id(repo_id)
    exported = export_student(folder, path, to=to, ema=ema, licence=licence, name=repo_id)
    out.say(f"{path}: {exported.student.source}, exported to {to}")
    result: dict[str, Any] = {
        "out": str(path),
        "to": to,
        "nfe": exported.student.num_steps,
        "not_included": exported.not_included,
    }
    for note in exported.not_included:
        out.say(f"not included: {note}")
    if exported.max_difference is not None:
        out.say(f"largest difference from torch in onnxruntime: {exported.max_difference:.2g}")
        result["max_difference"] = exported.max_difference
    elif to == "onnx":
        out.say('not checked against torch: pip install "pidistill[onnx]" brings onnxruntime')
    if repo_id is not None:
        result["url"] = push(path, repo_id, card=exported.card, private=private)
        out.say(f"uploaded to {result['url']}")
    out.result(result)
