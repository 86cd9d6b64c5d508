"""Folders and repositories of pipelines: what is read, fetched, allowed and refused."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from pidistill import load_teacher
from pidistill.errors import PidistillError
from pidistill.teachers.formats.component_weights import ALLOW_PICKLE

from diffusers_pipelines import ddim, diffusers, save

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
        (lambda weights: weights["conv_in.weight"].fill_(math.nan), r"conv_in\.weight.*finite"),
        (b"\0" * 100, "unet"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    ],
)
def test_weights_that_are_missing_unexpected_or_damaged(pipeline, change, named):
    file = pipeline / WEIGHTS
    if isinstance(change, bytes):
        file.write_bytes(change)
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


def rename_weights(folder, *variants):
    """Leave the weights only as these variants, which differ."""
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for scale, variant in enumerate(variants, 1):
        file = folder / "unet" / f"diffusion_pytorch_model.{variant}.safetensors"
        save_file({key: (scale * value).half() for key, value in weights.items()}, file)


def test_a_lone_variant_is_read_and_several_are_a_choice(pipeline):
    rename_weights(pipeline, "fp16", "non_ema")
    with pytest.raises(PidistillError, match=r"fp16, non_ema; choose .*variant=fp16"):
        answer_of(pipeline)
    with pytest.raises(PidistillError, match=r"no variant 'ema' .*fp16, non_ema"):
        answer_of(f"{pipeline}?variant=ema")
    chosen = answer_of(f"{pipeline}?variant=fp16")
    assert not torch.equal(chosen, answer_of(f"{pipeline}?variant=non_ema"))
    (pipeline / "unet" / "diffusion_pytorch_model.non_ema.safetensors").unlink()
    assert torch.equal(answer_of(pipeline), chosen)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_weights(pipeline, variant):
    expected = answer_of(pipeline)
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    (pipeline / WEIGHTS).unlink()
    unet.save_pretrained(pipeline / "unet", max_shard_size=20_000, variant=variant)
    assert len(list(pipeline.glob("unet/*-of-*"))) > 1
    assert torch.equal(answer_of(pipeline), expected)


def test_what_the_library_ignores_is_ignored(pipeline):
    from diffusers.training_utils import EMAModel

    expected = answer_of(pipeline)
    unet = diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    average = EMAModel(unet.parameters(), model_cls=diffusers.UNet2DModel, model_config=unet.config)
    average.save_pretrained(pipeline / "unet")
    change_json(pipeline / "scheduler" / "scheduler_config.json", some_new_option=1)
    assert "decay" in json.loads((pipeline / "unet" / "config.json").read_text())
    assert torch.equal(answer_of(pipeline), expected)


def test_a_unet_and_a_scheduler_without_an_index(pipeline):
    expected = answer_of(pipeline)
    (pipeline / "model_index.json").unlink()
    assert load_teacher(pipeline).source == f"diffusers:{pipeline}"
    assert torch.equal(answer_of(pipeline), expected)


def change_json(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("size", "shape"),
    [("8", (3, 8, 8)), (8.0, (3, 8, 8)), ([8], (3, 8, 8)), ([16, "8"], (3, 16, 8))]
    + [(size, None) for size in (0, -8, True, 8.5, "x", [], [8, 8, 8], {}, math.inf, 10**30)],
)
def test_sample_sizes(pipeline, size, shape):
    change_json(pipeline / "unet" / "config.json", sample_size=size)
    if shape is None:
        with pytest.raises(PidistillError, match=r"sample_size is .*; expected .* \[64, 32\]"):
            answer_of(pipeline)
    else:
        assert load_teacher(pipeline).sample_shape == shape


def test_sides_that_the_network_cannot_halve(pipeline):
    change_json(pipeline / "unet" / "config.json", sample_size=9)
    with pytest.raises(PidistillError, match=r"\(3, 9, 9\): sides must be multiples of 2"):
        answer_of(pipeline)


@pytest.mark.parametrize(
    ("pipeline_class", "components", "message"),
    [
        ("StableDiffusionXL", {"text_encoder_2": "CLIPTextModel"}, "is an SDXL pipeline .*text"),
        ("StableDiffusionControlNet", {"controlnet": "ControlNetModel"}, "control image"),
        ("DanceDiffusion", {"unet": "UNet1DModel"}, "a DanceDiffusion pipeline .* sound"),
        ("TextToVideoSD", {"unet": "UNet3DConditionModel"}, "a video network"),
        ("Flux", {"unet": None, "transformer": "FluxTransformer2DModel"}, "is a Flux pipeline"),
        ("KandinskyPrior", {"unet": None, "prior": "PriorTransformer"}, "a prior over image"),
    ],
)
def test_other_pipelines_are_named(pipeline, pipeline_class, components, message):
    entries = {name: ["diffusers", value] for name, value in components.items()}
    index = {"_class_name": f"{pipeline_class}Pipeline", **entries}
    change_json(pipeline / "model_index.json", **index)
    with pytest.raises(PidistillError, match=f"{message}.*as_denoiser"):
        answer_of(pipeline)


def test_parts_of_pipelines_are_named(pipeline):
    lora = {"unet.lora_A.weight": torch.zeros(1)}
    save_file(lora, pipeline / "pytorch_lora_weights.safetensors")
    with pytest.raises(PidistillError, match=r"holds the adapter pytorch_lora.*fuse_lora"):
        answer_of(pipeline)
    with pytest.raises(PidistillError, match=r"is a LoRA.*fuse_lora"):
        answer_of(pipeline / "pytorch_lora_weights.safetensors")
    for config, message in [
        ({"_class_name": "AutoencoderKL"}, "it is an autoencoder without"),
        ({"_class_name": "ControlNetModel"}, "it is a ControlNet"),
        ({"model_type": "clip_text_model"}, "transformers library .clip_text_model"),
    ]:
        folder = pipeline / "other"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(PidistillError, match=message):
            answer_of(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_train_timesteps": 1}, "1 of 1 are usable"),
        ({"num_train_timesteps": "1000"}, 'num_train_timesteps is "1000", by default 1000'),
        ({"trained_betas": []}, "0 betas for 1000"),
        ({"trained_betas": [0.1, 0.2]}, "2 betas for 1000"),
        ({"trained_betas": [0.1, math.nan], "num_train_timesteps": 2}, "one is nan"),
        ({"trained_betas": [0.1, -0.1], "num_train_timesteps": 2}, "one is -0.1"),
        ({"beta_end": 1.5}, "one is 1.0"),
        ({"prediction_type": "noise"}, "prediction_type is 'noise'; expected one of epsilon"),
    ],
)
def test_schedulers_without_noise_levels(pipeline, config, message):
    change_json(pipeline / "scheduler" / "scheduler_config.json", **config)
    with pytest.raises(PidistillError, match=message):
        answer_of(pipeline)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_train_timesteps": 1}, "0 finite noise levels"),
        ({"num_train_timesteps": 2}, "1 finite noise levels"),
        ({"shift": -1.0}, "shift is -1.0.* positive shift"),
    ],
)
def test_flow_schedules_without_noise_levels(pipeline, config, message):
    save(pipeline, diffusers.FlowMatchEulerDiscreteScheduler())
    change_json(pipeline / "scheduler" / "scheduler_config.json", **config)
    with pytest.raises(PidistillError, match=message):
        answer_of(pipeline)


def test_a_time_embedding_that_does_not_cover_the_timesteps(tmp_path):
    save(tmp_path, ddim(), time_embedding_type="learned", num_train_timesteps=500)
    with pytest.raises(PidistillError, match=r"time \(learned\) .* timesteps 0 to 999"):
        answer_of(tmp_path)
    save(tmp_path, ddim(), time_embedding_type="fourier")
    with pytest.raises(PidistillError, match=r"time \(fourier\) .* timesteps 0 to 999"):
        answer_of(tmp_path)
