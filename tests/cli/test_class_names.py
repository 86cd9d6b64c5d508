"""The names of classes: kept with a teacher and its students, shown, and taken as labels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from pidistill import load_student, load_teacher
from pidistill.cli import main

NETWORK = ["--set", 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=8}}']
TINY = ["--max-train-steps", "2", "--batch-size", "8", *NETWORK]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Grey images in two classes, a teacher of them, and its student."""
    place = tmp_path_factory.mktemp("named")
    for name in ("class 10", "class 9"):
        (place / "images" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.new("L", (8, 8), 20 * i)
            image.save(place / "images" / name / f"{i}.png")
    teacher, run = place / "teacher", place / "run"
    assert main(["train-teacher", f"folder:{place / 'images'}", "--out", str(teacher), *TINY]) == 0
    distill = ["distill", "--teacher", str(teacher), "--method", "pid", "--out", str(run), *TINY]
    assert main(distill) == 0
    return place


def shown(name, capsys):
    capsys.readouterr()
    assert main(["inspect", str(name), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_they_go_from_the_data_to_the_teacher_and_its_student(folders, capsys):
    names = ("class 9", "class 10")
    assert load_teacher(f"native:{folders / 'teacher'}").class_names == names
    assert load_student(folders / "run").class_names == names
    for folder in ("teacher", "run"):
        assert shown(folders / folder, capsys)["class_names"] == list(names)
    facts = shown(f"folder:{folders / 'images'}", capsys)
    assert facts["classes"] == {"class 9": 4, "class 10": 4}
    assert facts["sample_shape"] == [1, 8, 8]
    levels = np.array([0, 20, 40, 60]) / 127.5 - 1
    assert (facts["mean"], facts["sigma_data"]) == pytest.approx(
        (levels.mean(), levels.std()), abs=0.02
    )


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("class 10", [1, 1, 1, 1]),
        ("0", [0, 0, 0, 0]),
        ("1,class 9,1", [1, 0, 1, 1]),
        ("all", [0, 1, 0, 1]),
        (None, [0, 1, 0, 1]),
    ],
)
def test_samples_take_them_in_turn(folders, tmp_path, label, expected):
    out = tmp_path / "x.npz"
    options = [] if label is None else ["--label", label]
    arguments = ["sample", str(folders / "run"), "-n", "4", "--seed", "3", "--batch-size", "3"]
    assert main([*arguments, *options, "--out", str(out)]) == 0
    student = load_student(folders / "run")
    x = student.generate(4, seed=3, label=torch.tensor(expected)).x
    assert np.allclose(np.load(out)["samples"], x.numpy(), atol=1e-6)


def test_classes_line_up_in_a_grid(folders, tmp_path):
    for options, columns in (([], 2), (["--label", "0,1,0"], 3), (["--columns", "6"], 6)):
        out = tmp_path / "x.png"
        arguments = ["sample", str(folders / "run"), "-n", "6", "--out", str(out), *options]
        assert main(arguments) == 0
        with Image.open(out) as picture:
            assert picture.width / picture.height == columns / (6 / columns)


def test_an_unknown_name_is_refused_with_those_there_are(folders, tmp_path, refused):
    sample = ["sample", folders / "run", "--out", tmp_path / "x.npz", "--label"]
    refused([*sample, "class 8"], "'class 8'", "class 9, class 10")
    refused([*sample, "0,7"], "label is 7", "0 .. 1")


def test_a_grey_reference_serves_grey_and_colour_samples(folders, tmp_path, refused, capsys):
    images = folders / "images"
    np.savez(tmp_path / "colour.npz", samples=np.random.default_rng(0).random((8, 3, 8, 8)) - 0.5)
    evaluate = ["-n", "8", "--metrics", "training-images", "--json"]
    for target in (folders / "run", tmp_path / "colour.npz"):
        out = str(tmp_path / "m.json")
        arguments = ["evaluate", str(target), "--reference", str(images), "--out", out, *evaluate]
        assert main(arguments) == 0
        assert "nearest_training_image" in json.loads(capsys.readouterr().out.splitlines()[-1])
    colour = f"{images}?channels=3"
    refused(["evaluate", folders / "run", "--reference", colour, "-n", "8"], "channels=1")
