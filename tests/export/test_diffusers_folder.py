"""Exported pipelines, opened by the diffusers library."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill import PidistillError, initial_noise
from pidistill.export.export import export_student
from pidistill.images import to_uint8
from pidistill.students.flow_map import FlowMapStudent
from pidistill.students.labels import labels_for
from pidistill.students.trajectory import TrajectoryStudent

diffusers = pytest.importorskip("diffusers")

NAMES = [
    "mlp",
    "points",
    "song_unet",
    "dhariwal_unet",
    "diffusers_unet",
    "labelled_diffusers_unet",
    "text_unet",
    "class_transformer",
    "prompt_transformer",
]

WITHOUT_PIDISTILL = """
import sys
sys.modules["pidistill"] = None  # importing it is an error from here on
import numpy, torch
from diffusers import DiffusionPipeline

torch.set_num_threads(1)
folder, names = sys.argv[1], sys.argv[2:]
options = {"trust_remote_code": True, "local_files_only": True}
pipelines = {n: DiffusionPipeline.from_pretrained(f"{folder}/{n}", **options) for n in names}
samples = {}
for name, pipeline in pipelines.items():
    z = torch.from_numpy(numpy.load(f"{folder}/z-{name}.npy"))
    for steps in (1, 2, 4, 8):
        if steps <= pipeline.student.most_steps:
            options = {"num_inference_steps": steps, "output_type": "raw"}
            drawn = pipeline(z=z, **options), pipeline(len(z), seed=7, **options)
            samples[f"{name}-{steps}-z"], samples[f"{name}-{steps}-seed"] = (
                one.images.numpy() for one in drawn
            )
numpy.savez(f"{folder}/samples.npz", **samples)
"""


@pytest.fixture(autouse=True)
def _own_cache_of_code(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    monkeypatch.setattr(sys, "path", list(sys.path))


def opened(folder, **options):
    """The pipeline in a folder."""
    return diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)


@pytest.fixture
def pipeline(tmp_path, mlp_run):
    """The exported student `mlp`, opened; its classes have names."""
    description = json.loads((mlp_run / "network.json").read_text())
    names = {"class_names": ["ant", "bee", "cat"]}
    (mlp_run / "network.json").write_text(json.dumps({**description, **names}))
    export_student(mlp_run, tmp_path / "out", to="diffusers")
    return opened(tmp_path / "out")


@pytest.fixture
def _one_thread():
    """The number of threads changes the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize(
    ("kind", "steps"), [(TrajectoryStudent, (1,)), (FlowMapStudent, (1, 2, 4, 8))]
)
def test_all_architectures_draw_the_same_samples_where_pidistill_is_not_installed(
    tmp_path, student_named, run_of, kind, steps
):
    for name in NAMES:
        student = student_named(name, kind)
        run = run_of(tmp_path / f"run-{name}", student)
        export_student(run, tmp_path / name, to="diffusers")
        z = student.sigma_max * torch.randn(3, *student.sample_shape)
        np.save(tmp_path / f"z-{name}.npy", z.numpy())
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_PIDISTILL, str(tmp_path), *NAMES],
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    samples = np.load(tmp_path / "samples.npz")
    assert len(samples) == 2 * len(NAMES) * len(steps)
    for name, k in itertools.product(NAMES, steps):
        student = student_named(name, kind)
        z = torch.from_numpy(np.load(tmp_path / f"z-{name}.npy"))
        expected = student.sample(z, label=labels_for(student, 3), steps=k).x
        assert torch.equal(torch.from_numpy(samples[f"{name}-{k}-z"]), expected)
        expected = student.generate(3, seed=7, steps=k).x
        assert torch.equal(torch.from_numpy(samples[f"{name}-{k}-seed"]), expected)


def test_the_folder_names_its_parts_and_holds_no_pickle(tmp_path, mlp_run):
    export_student(mlp_run, tmp_path / "out", to="diffusers")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*")} == {
        "README.md",
        "model_index.json",
        f"{index['_class_name'][0]}.py",
        "student/config.json",
        "student/diffusion_pytorch_model.safetensors",
        f"student/{index['student'][0]}.py",
    }


def test_noise_comes_from_one_source(pipeline, student_named):
    student = student_named("mlp")
    z = initial_noise(student, 2, seed=5)
    given = pipeline(z=z, output_type="raw").images
    latents = z / student.sigma_max
    torch.testing.assert_close(pipeline(latents=latents, output_type="raw").images, given)
    assert torch.equal(pipeline(2, seed=5, output_type="raw").images, given)
    first, second = (
        pipeline(2, generator=torch.Generator().manual_seed(1), output_type="raw").images
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, given)


def test_labels_go_round_the_classes_unless_they_are_given(pipeline, student_named):
    student = student_named("mlp")
    z = initial_noise(student, 4, seed=0)

    def drawn(labels):
        return pipeline(z=z, class_labels=labels, output_type="raw").images

    assert torch.equal(drawn(None), drawn([0, 1, 2, 0]))
    assert torch.equal(drawn(2), drawn(torch.tensor([2, 2, 2, 2])))
    torch.testing.assert_close(drawn(-1), student.sample(z).x)
    assert not torch.allclose(drawn(-1), drawn(0))


def test_output_types(tmp_path, student_named, run_of):
    student = student_named("song_unet")
    export_student(run_of(tmp_path / "run", student), tmp_path / "out", to="diffusers")
    pipeline = opened(tmp_path / "out")
    x = pipeline(2, seed=0, output_type="raw").images
    pt = pipeline(2, seed=0, output_type="pt").images
    torch.testing.assert_close(pt, (x / 2 + 0.5).clamp(0, 1))
    array = pipeline(2, seed=0, output_type="np", return_dict=False)[0]
    assert array.shape == (2, 8, 8, 3)
    picture = pipeline(2, seed=0).images[0]
    assert isinstance(picture, Image.Image)
    expected = to_uint8(x)[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"output_type": "jpg"}, "'jpg'"),
        ({"num_inference_steps": 4}, "num_inference_steps is 4; expected 1$"),
        ({"class_labels": 3}, "class_labels is 3"),
        ({"class_labels": [0, 1.5]}, r"class_labels is \[0, 1.5\]; expected 0 .. 2"),
        ({"class_labels": []}, r"class_labels is \[\]"),
        ({"class_labels": ["ant", "dog"]}, "'dog'; expected one of ant, bee, cat"),
        ({"class_labels": [0, 1], "batch_size": 3}, r"shape \(2,\); expected one label, or 3"),
        ({"class_labels": [0, 1], "latents": torch.zeros(3, 1, 4, 4)}, "one label, or 3"),
        ({"latents": torch.zeros(3, 1, 4, 4), "num_images_per_prompt": 2}, r"\(3, 1, 4, 4\)"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"generator": [torch.Generator()] * 2, "batch_size": 3}, "a list of 2; expected 3"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "'noise'"),
        ({"z": torch.zeros(1, 1, 4, 4), "seed": 1}, "z and seed"),
        ({"z": torch.zeros(2, 5)}, r"\(2, 5\)"),
    ],
)
def test_bad_arguments_are_named(pipeline, arguments, named):
    with pytest.raises(ValueError, match=named):
        pipeline(**arguments)


def test_labels_have_names_and_as_many_images_as_asked_for(pipeline):
    def drawn(**options):
        return pipeline(seed=3, output_type="latent", **options).images

    assert pipeline.labels == {"ant": 0, "bee": 1, "cat": 2}
    assert pipeline.get_label_ids(["cat", "ant"]) == [2, 0]
    assert torch.equal(drawn(class_labels=["cat", 0]), drawn(class_labels=[2, 0], batch_size=2))
    assert torch.equal(drawn(class_labels="bee", batch_size=3), drawn(class_labels=[1, 1, 1]))
    twice = drawn(class_labels=["bee", "ant"], num_images_per_prompt=2)
    assert torch.equal(twice, drawn(class_labels=[1, 1, 0, 0]))
    assert torch.equal(drawn(num_images_per_prompt=3), drawn(class_labels=[0, 0, 0]))


def test_a_generator_of_its_own_makes_a_sample_the_same_in_every_batch(pipeline):
    """With the very noise that diffusers draws for its own pipelines."""

    def drawn(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"generator": generators, "class_labels": 1, "output_type": "latent"}
        return pipeline(len(seeds), **options).images

    torch.testing.assert_close(drawn(4, 5, 6)[1:2], drawn(5))
    latents = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn(5), pipeline(latents=latents, class_labels=1, output_type="raw")[0])


@pytest.fixture
def flow_map_pipeline(tmp_path, student_named, run_of):
    """The exported flow map `mlp`, opened, and its folder."""
    run = run_of(tmp_path / "map", student_named("mlp", FlowMapStudent))
    export_student(run, tmp_path / "flow-map", to="diffusers")
    return opened(tmp_path / "flow-map"), tmp_path / "flow-map"


@pytest.mark.parametrize("steps", [0, 9])
def test_a_flow_map_takes_from_1_to_8_evaluations(flow_map_pipeline, steps):
    with pytest.raises(ValueError, match=f"num_inference_steps is {steps}; expected 1 to 8$"):
        flow_map_pipeline[0](seed=0, num_inference_steps=steps)


def test_a_callback_sees_every_point_and_may_change_it(flow_map_pipeline, student_named):
    """As the maps of the student have them; in place, too; and none changes not a bit."""
    pipeline, _ = flow_map_pipeline
    student = student_named("mlp", FlowMapStudent)
    options = {"seed": 2, "num_inference_steps": 3, "output_type": "latent"}
    seen = {}

    def look(pipe, step, timestep, tensors):
        assert pipe is pipeline
        assert pipe.num_timesteps == 3
        seen[step] = tensors["latents"].clone()
        return tensors

    images = pipeline(4, callback_on_step_end=look, **options).images
    assert torch.equal(images, pipeline(4, **options).images)
    assert torch.equal(images, seen[2])
    label, sigma = labels_for(student, 4), student.sigma_data * student.nodes(3).tan()
    x = initial_noise(student, 4, seed=2)
    for step in range(3):
        x = student.map(x, sigma[step].expand(4), sigma[step + 1].expand(4), label)
        torch.testing.assert_close(seen[step], x, rtol=1e-4, atol=1e-4)

    def change(pipe, step, timestep, tensors):
        tensors["latents"].mul_(0.5 if step == 1 else 1)
        return {}

    changed = pipeline(4, callback_on_step_end=change, **options).images
    x = student.map(0.5 * seen[1], sigma[2].expand(4), sigma[3].expand(4), label)
    torch.testing.assert_close(changed, x, rtol=1e-4, atol=1e-4)


def test_a_flow_map_in_half_precision(flow_map_pipeline):
    pipeline, folder = flow_map_pipeline
    options = {"seed": 0, "num_inference_steps": 2, "output_type": "raw"}
    full = pipeline(8, **options).images
    half = opened(folder, torch_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.student.parameters()} == {torch.bfloat16}
    samples = half(8, **options).images
    assert samples.dtype == torch.float32
    assert 0 < (samples - full).abs().max() < 0.2


def test_the_card_s_code_runs(tmp_path, mlp_run, monkeypatch):
    export_student(mlp_run, tmp_path / "small", to="diffusers")
    card = (tmp_path / "small" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)  # noqa: S102
    assert isinstance(names["sample"], Image.Image)


def test_half_precision(tmp_path, mlp_run):
    export_student(mlp_run, tmp_path / "out", to="diffusers")
    full = opened(tmp_path / "out")(8, seed=0, output_type="raw").images
    half = opened(tmp_path / "out", torch_dtype=torch.bfloat16)
    assert half.student.dtype == torch.bfloat16
    samples = half(8, seed=0, output_type="raw").images
    assert samples.dtype == torch.float32
    assert 0 < (samples - full).abs().max() < 0.1


def test_samples_that_are_no_images_are_raw(tmp_path, student_named, run_of):
    student = student_named("points")
    exported = export_student(run_of(tmp_path / "run", student), tmp_path / "out", to="diffusers")
    assert "samples have shape (2,)" in exported.not_included[0]
    pipeline = opened(tmp_path / "out")
    assert pipeline(5, seed=0, output_type="raw").images.shape == (5, 2)
    with pytest.raises(ValueError, match=r"shape \(2,\) are not images"):
        pipeline(5, seed=0)
    with pytest.raises(ValueError, match="the student is unconditional"):
        pipeline(class_labels=0)


def latent_pipeline(folder):
    """Save what matters of a latent pipeline: its decoder."""
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
    ).eval()
    autoencoder.save_pretrained(folder / "vae")
    index = {"_class_name": "LDMPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return autoencoder


def test_the_decoder_of_a_latent_teacher_comes_along(tmp_path, student_named, run_of):
    autoencoder = latent_pipeline(tmp_path)
    config = f'teacher = "diffusers:{tmp_path}?prompts=x"\n\n[method]\nname = "pid"\n'
    student = student_named("text_unet")
    run = run_of(tmp_path / "run", student, config)
    exported = export_student(run, tmp_path / "out", to="diffusers")
    assert exported.not_included == []
    pipeline = opened(tmp_path / "out")
    assert type(pipeline.vae) is diffusers.AutoencoderKL
    x = student.generate(2, seed=0).x
    with torch.no_grad():
        images = autoencoder.decode(x / autoencoder.config.scaling_factor).sample
    decoded = pipeline(2, seed=0, output_type="pt").images
    torch.testing.assert_close(decoded, (images / 2 + 0.5).clamp(0, 1))
    torch.testing.assert_close(pipeline(2, seed=0, output_type="latent").images, x)
    assert pipeline.labels == {"one": 0, "two": 1}  # its prompts
    pipeline.to(torch.bfloat16)
    half = pipeline(class_labels=["one", "two"], seed=0, output_type="pt").images
    assert 0 < (half - decoded).abs().max() < 0.1


def test_a_decoder_that_is_gone_is_said(tmp_path, student_named, run_of):
    config = f'teacher = "diffusers:{tmp_path}/gone"\n\n[method]\nname = "pid"\n'
    run = run_of(tmp_path / "run", student_named("text_unet"), config)
    exported = export_student(run, tmp_path / "out", to="diffusers")
    assert "without the latent decoder" in exported.not_included[0]
    assert "samples have shape (4, 8, 8)" in exported.not_included[1]
    assert str(tmp_path) not in Path(tmp_path / "out" / "README.md").read_text()


def test_nothing_is_left_behind_by_an_export_that_fails(tmp_path, mlp_run, monkeypatch):
    def fail(*arguments, **options):
        raise PidistillError("the disk is full")

    with pytest.raises(PidistillError, match="'tflite'"):
        export_student(mlp_run, tmp_path / "out", to="tflite")
    monkeypatch.setattr("pidistill.export.diffusers_folder.write_tensors", fail)
    with pytest.raises(PidistillError, match="the disk is full"):
        export_student(mlp_run, tmp_path / "out", to="diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
