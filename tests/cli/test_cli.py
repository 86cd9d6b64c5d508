"""The command line end to end: the verbs, their files, and every error of the contract."""

import json
import os
import signal
import subprocess
import sys
import time

import click
import numpy as np
import pytest
from PIL import Image

import pidistill
from pidistill.cli import SHARED, VERBS, main
from pidistill.cli import pidistill as group
from pidistill.teachers import load_teacher

TINY = ["--max-train-steps", "4", "--batch-size", "8"]
MLP = ["--set", 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=8}}']


def test_a_run_folder_holds_what_the_contract_names(ring_run):
    names = {file.name for file in ring_run.iterdir()}
    assert {"config.toml", "student.safetensors", "ema-0.999.safetensors", "network.json"} <= names
    assert {"metrics.jsonl", "state"} <= names
    for line in (ring_run / "metrics.jsonl").read_text().splitlines():
        assert {"step", "images", "loss", "teacher_evals", "seconds"} <= json.loads(line).keys()


def test_sample_writes_an_array_that_depends_on_the_seed_only(ring_run, tmp_path):
    def samples(name, num, seed, *more):
        file = tmp_path / name
        arguments = ["-n", str(num), "--seed", str(seed), *more, "--out", str(file)]
        assert main(["sample", str(ring_run), *arguments]) == 0
        return np.load(file)["samples"]

    first = samples("a.npz", 7, 3)
    assert (first.dtype, first.shape) == (np.float32, (7, 2))
    np.testing.assert_allclose(first[:5], samples("b.npz", 5, 3, "--batch-size", "2"), atol=1e-5)
    assert not np.allclose(first, samples("c.npz", 7, 4), atol=1e-3)


def test_sample_draws_a_grid(digits_student, tmp_path):
    file = tmp_path / "deeper" / "grid.png"
    assert (
        main(["sample", str(digits_student), "-n", "10", "--label", "3", "--out", str(file)]) == 0
    )
    with Image.open(file) as image:
        assert image.mode == "RGB"
        assert image.width > 4 * 8


@pytest.mark.parametrize(("solver", "nfe"), [("heun", 9), ("euler", 5)])
def test_sample_takes_a_teacher(solver, nfe, tmp_path, capsys):
    file = tmp_path / "x.npz"
    arguments = ["sample", "digits", "-n", "3", "--steps", "5", "--solver", solver, "--json"]
    assert main([*arguments, "--out", str(file)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"out": str(file), "num_samples": 3, "nfe": nfe, "seed": 0}
    assert np.load(file)["samples"].shape == (3, 1, 8, 8)


def test_evaluate_writes_the_metrics_of_the_contract(digits_student, capsys):
    arguments = ["evaluate", str(digits_student), "--reference", "digits", "--num", "64", "--json"]
    assert main(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics == json.loads((digits_student / "metrics.json").read_text())
    own = {"nfe", "frechet_distance", "ms_per_sample"}
    assert own | {f"teacher_{key}" for key in own} <= metrics.keys()
    assert {"num_samples", "seed", "rms_error", "reference_split_frechet_distance"} <= set(metrics)
    assert (metrics["nfe"], metrics["teacher_nfe"]) == (1, 79)
    assert all(value is not None for value in metrics.values())


def test_evaluate_leaves_out_what_cannot_be_computed(ring_run, tmp_path):
    reference = tmp_path / "reference.npz"
    np.savez(reference, samples=np.zeros((8, 2), dtype=np.float32))
    assert main(["evaluate", str(ring_run), "--reference", str(reference), "--num", "8"]) == 0
    metrics = json.loads((ring_run / "metrics.json").read_text())
    assert "frechet_distance" not in metrics
    assert "rms_error" in metrics


def test_evaluate_without_the_teacher_says_so(digits_student, tmp_path, capsys):
    for name in ("network.json", "ema-0.99.safetensors", "config.toml"):
        (tmp_path / name).write_bytes((digits_student / name).read_bytes())
    config = tmp_path / "config.toml"
    config.write_text(config.read_text().replace('"digits"', '"native:/nowhere"'))
    assert main(["evaluate", str(tmp_path), "--reference", "digits", "--num", "32", "--json"]) == 0
    printed = capsys.readouterr()
    metrics = json.loads(printed.out)
    assert "without the teacher" in printed.err
    assert "frechet_distance" in metrics
    assert not {"rms_error", "teacher_nfe", "teacher_ms_per_sample"} & metrics.keys()


def test_train_teacher_of_glyphs_takes_their_preset(tmp_path, monkeypatch):
    monkeypatch.setattr("pidistill.data.glyphs.NUM_IMAGES", 50)
    folder = tmp_path / "teacher"
    arguments = ["--max-train-steps", "2", "--batch-size", "4", "--preview-steps", "0"]
    assert main(["train-teacher", "glyphs", "--out", str(folder), *arguments]) == 0
    teacher = load_teacher(f"native:{folder}")
    assert (teacher.sample_shape, teacher.num_classes) == ((3, 32, 32), 10)
    network, _ = teacher.network_to_copy()
    assert network.config["patch_size"] == 2


def test_train_teacher_on_a_folder_of_images(tmp_path):
    for label in ("cats", "dogs"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(3):
            pixels = np.full((8, 8, 3), 40 * index, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{index}.png")
    folder = tmp_path / "teacher"
    arguments = ["train-teacher", f"folder:{tmp_path / 'images'}", "--out", str(folder)]
    assert main([*arguments, *TINY, *MLP]) == 0
    assert json.loads((folder / "network.json").read_text())["num_classes"] == 2


def test_a_relative_teacher_is_found_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train-teacher", "digits", "--out", "teacher", *TINY, *MLP]) == 0
    assert main(["distill", "--teacher", "native:teacher", "--out", "student", *TINY]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    arguments = ["-n", "2", "--steps", "3", "--out", "x.npz"]
    assert main(["sample", "native:../teacher", *arguments]) == 0
    assert np.load("x.npz")["samples"].shape == (2, 1, 8, 8)
    assert main(["evaluate", "../student", "--reference", "digits", "--num", "8"]) == 0
    metrics = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert "rms_error" in metrics
    assert (metrics["weights"], metrics["step"]) == ("ema-0.99.safetensors", 4)


def test_quickstart_ends_with_a_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pidistill.evaluation.student_report.ERROR_SAMPLES", 60)
    (tmp_path / "quickstart").mkdir()
    command = ["quickstart", "--max-train-steps", "20", "--num", "200", "--json"]
    assert main(command) == 0
    folder = tmp_path / "quickstart-2"
    metrics = json.loads(capsys.readouterr().out)
    assert metrics == json.loads((folder / "metrics.json").read_text())
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 3
    assert page.count("<svg") >= 4  # and one of the loss, if it is positive throughout
    assert f"pidistill {' '.join(command)}" in page
    for namespace in ("www.w3.org", "purl.org", "creativecommons.org"):
        page = page.replace(f"http://{namespace}", "")
    assert "http://" not in page
    assert 'src="http' not in page


RING = ["distill", "--teacher", "mixture:ring", "--out", "new"]
PAIRS = [*RING, *TINY, *MLP, "--method", "knowledge", "--set"]

BAD = {
    "unknown verb": (["distil"], ["distil"]),
    "unknown teacher": (["distill", "--teacher", "mixture:rings", "--out", "new"], ["rings"]),
    "missing file": (["distill", "--teacher", "edm:no.pkl", "--out", "new"], ["no.pkl"]),
    "no teacher": (["distill", "--out", "new"], ["--teacher"]),
    "no folder": (["distill", "--teacher", "digits"], ["--out"]),
    "no folder to resume": (["train-teacher", "digits", "--resume", "--dry-run"], ["--out"]),
    "unknown method": ([*RING, "--method", "pids"], ["'pids'", "mean 'pid'"]),
    "a method that trains teachers": ([*RING, "--method", "denoising"], ["'denoising'"]),
    "unknown setting of the method": (
        [*RING, "--method", "pid", "--set", "method.residul=x"],
        ["'method.residual'"],
    ),
    "no setting": ([*RING, "--set", "batch_size"], ["'batch_size'", "KEY=VALUE"]),
    "wrong value": ([*RING, "--learning-rate", "-1"], ["learning_rate", "-1"]),
    "wrong type": ([*RING, "--batch-size", "many"], ["many", "integer"]),
    "unknown preset": ([*RING, "--preset", "quick"], ["quick", "fast"]),
    "missing config": ([*RING, "--config", "no.toml"], ["no.toml", "does not exist"]),
    "teacher's preset": (
        ["train-teacher", "digits", "--preset", "fast", "--out", "new"],
        ["'pid'"],
    ),
    "folder in use": (["distill", "--teacher", "mixture:ring", "--out", "RUN"], ["--resume"]),
    "quickstart in a folder in use": (["quickstart", "--out", "RUN"], ["not empty"]),
    "resume, differently": (["distill", "--out", "RUN", "--resume", "--seed", "5"], ["seed", "5"]),
    "fewer steps": (["distill", "--out", "RUN", "--resume", "--max-train-steps", "2"], ["is 2"]),
    "not writable": ([*RING[:-1], "file/run", *TINY], ["cannot write", "file"]),
    "loss": (
        [*RING, "--method", "pid", "--learning-rate", "1e30", "--batch-size", "8", *MLP],
        ["step"],
    ),
    "pairs on a device": ([*PAIRS, 'method.pairs="/dev/null"'], ["/dev/null"]),
    "pairs at nobody's": ([*PAIRS, 'method.pairs="~nobody-of-that-name/x"'], ["nobody-of-that"]),
    "pairs nowhere": ([*PAIRS, 'method.pairs=""'], ["pairs"]),
    "pairs and no path": ([*PAIRS, 'method.pairs="\\u0000"'], []),
    "no model": (["sample", ".", "--out", "x.png"], ["'.'"]),
    "missing model": (["sample", "missing", "--out", "deep/x.png"], ["missing"]),
    "file type": (["sample", "DIGITS", "--out", "x.jpg"], [".jpg", ".png", ".npz"]),
    "label": (["sample", "DIGITS", "--label", "10", "--out", "x.png"], ["label is 10", "0 .. 9"]),
    "steps": (["sample", "RUN", "--steps", "4", "--out", "x.npz"], ["steps is 4", "1"]),
    "refine": (["sample", "RUN", "--refine", "2", "--out", "x.npz"], ["refine is 2", "flow map"]),
    "solver": (["sample", "RUN", "--solver", "heun", "--out", "x.npz"], ["heun", "student"]),
    "no image": (["sample", "RUN", "--out", "x"], ["not images", ".npz"]),
    "weights": (["sample", "RUN", "--ema", "0.5", "--out", "x.npz"], ["ema-0.5", "ema-0.999"]),
    "device": (["sample", "RUN", "--device", "gpu7", "--out", "x.npz"], ["gpu7"]),
    "shapes": (["evaluate", "RUN", "--reference", "digits", "--num", "8"], ["(1, 8, 8)", "(2,)"]),
}


@pytest.mark.parametrize(("arguments", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input(arguments, words, ring_run, digits_student, tmp_path, refused, monkeypatch):
    """Exit code 2, one line that names the value and what was expected, and nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    folders = {"RUN": ring_run, "DIGITS": digits_student}
    config = (ring_run / "config.toml").read_text()
    refused([folders.get(argument, argument) for argument in arguments], *words)
    assert (ring_run / "config.toml").read_text() == config
    kept = {"new"} if "1e30" in arguments else set()
    assert {path.name for path in tmp_path.iterdir()} == {"file", *kept}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat = 1.0", ["learning_rat", "'learning_rate'"]),
        ('batch_size = "many"', ["batch_size", "many", "integer"]),
        ('base = "quick"', ["quick", "fast"]),
        ("base = 3", ["3", "fast"]),
        ("teacher = ", ["run.toml"]),
    ],
)
def test_bad_config_files(text, words, tmp_path, refused):
    (tmp_path / "run.toml").write_text(text)
    refused([*RING[:-1], tmp_path / "new", "--config", tmp_path / "run.toml"], *words)


def test_ctrl_c_saves_and_resume_goes_on(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "pidistill", "distill", "--out", str(folder)]
    started = [*command, "--teacher", "mixture:ring", "--batch-size", "8", *MLP]
    process = subprocess.Popen(
        [*started, "--max-train-steps", "100000", "--logging-steps", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    log = folder / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in printed
    assert f"next: pidistill distill --out {folder} --resume" in printed
    step = json.loads(log.read_text().splitlines()[-1])["step"]
    assert list((folder / "state").glob(f"step-{step:09d}"))
    resumed = ["distill", "--out", str(folder), "--resume"]
    assert main([*resumed, "--max-train-steps", str(step + 2)]) == 0
    assert json.loads(log.read_text().splitlines()[-1])["step"] == step + 2


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_comes_without_torch(verb):
    code = (
        "import sys; from pidistill.cli import main; main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules"
    )
    arguments = [word for word in (verb, "-h") if word]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: pidistill" in done.stdout
    assert not verb or f"Example: pidistill {verb}" in done.stdout


def test_help_and_version(capsys):
    assert main([]) == main(["--version"]) == 0
    printed = capsys.readouterr().out
    assert "Usage: pidistill" in printed
    assert pidistill.__version__ in printed


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_debug_and_json(verb):
    command = group.get_command(click.Context(group), verb)
    flags = [flag for parameter in command.params for flag in parameter.opts]
    assert flags.count("--debug") == 1
    assert flags.count("--json") == 1


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_debug_shows_the_traceback_and_its_causes(way, capsys, monkeypatch):
    arguments = ["sample", "mixture:ring", "--device", "gpu7", "--out", "x.npz"]
    if way == "environment":
        monkeypatch.setenv("PIDISTILL_DEBUG", "1")
    assert main([*arguments, *(["--debug"] if way == "flag" else [])]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("Traceback") == 2
    assert "The above exception was the direct cause" in printed.err
    assert printed.err.splitlines()[-1].startswith("error: device 'gpu7'")


@pytest.mark.parametrize("verb", sorted(VERBS.keys() - set(SHARED)))
def test_a_verb_of_one_process_says_so(monkeypatch, refused, verb):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused([verb, "digits"], f"{verb} works in one process, and 2 were started")
