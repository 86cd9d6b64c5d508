"""A run knows its teacher and data by content: they may move, but not change."""

import json
import shutil

import pytest
import torch
from PIL import Image

from pidistill.cli import main
from pidistill.storage import read_tensors, write_tensors

NETWORK = ["--set", 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=8}}']
TINY = ["--max-train-steps", "2", "--batch-size", "8", *NETWORK]
MORE = ["--max-train-steps", "3", "--resume"]


@pytest.fixture
def teacher(tmp_path):
    """A trained teacher, the data it was trained on, and a run that distils it."""
    images = tmp_path / "images"
    for name in "ab":
        (images / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (4, 4), (10 * i, 100, 200)).save(images / name / f"{i}.png")
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    assert main(["train-teacher", f"folder:{images}", "--out", str(teacher), *TINY]) == 0
    distill = ["distill", "--teacher", f"native:{teacher}", "--method", "pid", "--out", str(run)]
    assert main([*distill, *TINY]) == 0
    return teacher


def change_weights(folder):
    """Other weights under the same path."""
    for file in folder.glob("*.safetensors"):
        write_tensors(file, {key: value + 0.5 for key, value in read_tensors(file).items()})


def test_a_replaced_teacher_is_refused_and_left_out_of_measurements(teacher, refused, capsys):
    run = teacher.parent / "run"
    change_weights(teacher)
    refused(["distill", "--out", run, *MORE], str(teacher), "content")
    evaluate = ["evaluate", str(run), "--num", "20", "--json"]
    capsys.readouterr()
    assert main(evaluate) == 0
    printed = capsys.readouterr()
    assert "has changed" in printed.err
    assert "rms_error" not in json.loads(printed.out)


def test_a_moved_teacher_is_found_where_it_is_now(teacher, capsys):
    run, moved = teacher.parent / "run", teacher.parent / "elsewhere" / "teacher"
    moved.parent.mkdir()
    shutil.move(teacher, moved)
    capsys.readouterr()
    evaluate = ["evaluate", str(run), "--num", "20", "--json"]
    assert main([*evaluate, "--teacher", f"native:{moved}"]) == 0
    assert "rms_error" in json.loads(capsys.readouterr().out)
    assert main(["distill", "--out", str(run), *MORE, "--teacher", f"native:{moved}"]) == 0
    assert main([*evaluate]) == 0
    assert "rms_error" in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_replaced_data_are_refused_and_moved_data_accepted(teacher, refused):
    images, moved = teacher.parent / "images", teacher.parent / "moved"
    resume = ["--out", str(teacher), *MORE]
    shutil.copytree(images, moved)
    Image.new("RGB", (4, 4), "red").save(images / "a" / "0.png")
    refused(["train-teacher", f"folder:{images}", *resume], str(images), "content")
    assert main(["train-teacher", f"folder:{moved}", *resume]) == 0


def test_a_teacher_of_the_same_content_gives_the_same_run(teacher):
    run, copy = teacher.parent / "run", teacher.parent / "copy"
    shutil.copytree(run, teacher.parent / "straight")
    shutil.copytree(teacher, copy)
    assert main(["distill", "--out", str(run), *MORE, "--teacher", f"native:{copy}"]) == 0
    assert main(["distill", "--out", str(teacher.parent / "straight"), *MORE]) == 0
    first, second = (
        read_tensors(folder / "student.safetensors") for folder in (run, run.parent / "straight")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
