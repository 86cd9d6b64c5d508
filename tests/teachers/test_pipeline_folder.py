"""Folders and repositories of pipelines: what is read, fetched, allowed and refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.teachers.formats.pipeline_folder import ALLOW_PICKLE

from diffusers_pipelines import ddim, save

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def pipeline(tmp_path):
    """The folder of a pipeline."""
    save(tmp_path, ddim())
    return tmp_path


def answer_of(folder):
    return load_teacher(f"diffusers:{folder}")(torch.ones(1, 3, 8, 8), torch.ones(1))


def test_components_in_the_root_as_in_old_repositories(pipeline):
    expected = answer_of(pipeline)
    for component in ("unet", "scheduler"):
        for file in (pipeline / component).iterdir():
            file.rename(pipeline / file.name)
        (pipeline / component).rmdir()
    assert torch.equal(answer_of(pipeline), expected)
    assert load_teacher(pipeline).source == f"diffusers:{pipeline}"  # recognised


def test_a_repository_is_fetched_without_pickles(pipeline, monkeypatch):
    calls = []

    def snapshot_download(repository, **options):
        calls.append((repository, options))
        return str(pipeline)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    teacher = load_teacher("diffusers:someone/some-ddpm?revision=abc")
    ((repository, options),) = calls
    assert (repository, options["revision"]) == ("someone/some-ddpm", "abc")
    assert "unet/*.safetensors" in options["allow_patterns"]
    assert not any(".bin" in p or p.endswith(".*") for p in options["allow_patterns"])
    assert teacher.source == "diffusers:someone/some-ddpm?revision=abc"


def test_a_repository_that_cannot_be_fetched(monkeypatch):
    def snapshot_download(repository, **options):
        raise OSError("404 Client Error\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(PidistillError, match=r"someone/nothing .*404 Client Error more lines"):
        load_teacher("diffusers:someone/nothing")


class Malicious:
    def __reduce__(self):
        return (exec, ("import pathlib, os; pathlib.Path(os.environ['WITNESS']).touch()",))


def test_pickles_are_read_only_where_allowed_and_never_executed(pipeline, monkeypatch):
    monkeypatch.delenv(ALLOW_PICKLE, raising=False)
    expected = answer_of(pipeline)
    weights = pipeline / WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(PidistillError, match=f"diffusion_pytorch_model.bin.*{ALLOW_PICKLE}=1"):
        answer_of(pipeline)
    monkeypatch.setenv(ALLOW_PICKLE, "1")
    assert torch.equal(answer_of(pipeline), expected)
    witness = pipeline / "executed"
    monkeypatch.setenv("WITNESS", str(witness))
    torch.save({"conv_in.weight": Malicious()}, weights.with_suffix(".bin"))
    with pytest.raises(PidistillError, match="unet"):
        answer_of(pipeline)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("conv_in.weight"), r"conv_in\.weight"),
        (lambda weights: weights.update(extra=torch.zeros(1)), "extra"),
        (None, "unet"),
    ],
)
def test_weights_that_are_missing_unexpected_or_damaged(pipeline, change, named):
    file = pipeline / WEIGHTS
    if change is None:
        file.write_bytes(file.read_bytes()[:100])
    else:
        weights = load_file(file)
        change(weights)
        save_file(weights, file)
    with pytest.raises(PidistillError, match=named) as caught:
        answer_of(pipeline)
    assert "\n" not in str(caught.value)


def test_places_that_are_no_pipelines(pipeline):
    (pipeline / "model.safetensors").touch()
    for name, message in [
        ("unet", "holds no model_index.json: it is a UNet .* without its scheduler.* perhaps "),
        ("model.safetensors", "is a single file"),
        ("nowhere", "nowhere' is neither an existing folder nor the OWNER/NAME"),
    ]:
        with pytest.raises(PidistillError, match=message):
            load_teacher(f"diffusers:{pipeline / name}")
    with pytest.raises(PidistillError, match="names no pipeline"):
        load_teacher("diffusers:")


@pytest.mark.parametrize(("unet", "found"), [(None, "no unet"), (["my_code", "MyUNet"], "MyUNet")])
def test_a_pipeline_without_a_unet_that_is_known(pipeline, unet, found):
    index = pipeline / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"unet": unet}))
    with pytest.raises(PidistillError, match=f"{found}.*; expected .*UNet2DModel"):
        answer_of(pipeline)
