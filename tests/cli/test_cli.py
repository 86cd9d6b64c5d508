"""The command line end to end: the verbs, their files, and every error of the contract."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pidistill.cli import main
from pidistill.teachers import load_teacher

TINY = ["--max-train-steps", "4", "--batch-size", "8"]
SMALL_NETWORK = ["--set", 'network={name="mlp",config={width=16,num_blocks=1,embedding_width=8}}']


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps on a mixture."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    arguments = ["distill", "--teacher", "mixture:ring", "--method", "pid", "--out", str(folder)]
    assert main([*arguments, *TINY, *SMALL_NETWORK]) == 0
    return folder


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps on the bundled digits teacher."""
    folder = tmp_path_factory.mktemp("cli") / "digits"
    assert main(["distill", "--teacher", "digits", "--out", str(folder), *TINY]) == 0
    return folder


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Assert that a command is refused in one line on stderr that holds `words`."""
    capsys.readouterr()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = [line for line in printed.err.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert len([line for line in lines if line.startswith("error:")]) == 1
    assert "Traceback" not in printed.err
    for word in words:
        assert word in lines[-1]


def test_a_run_folder_holds_what_the_contract_names(run: Path) -> None:
    names = {file.name for file in run.iterdir()}
    assert {
        "config.toml",
        "student.safetensors",
        "ema-0.999.safetensors",
        "metrics.jsonl",
        "state",
        "network.json",
    } <= names
    for line in (run / "metrics.jsonl").read_text().splitlines():
        assert {"step", "images", "loss", "teacher_evals", "seconds"} <= json.loads(line).keys()


def test_distill_prints_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    arguments = ["distill", "--teacher", "mixture:gaussian", "--out", str(folder), "--json"]
    assert main([*arguments, *TINY, *SMALL_NETWORK]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4


def test_sample_writes_an_array_that_depends_on_the_seed_only(run: Path, tmp_path: Path) -> None:
    first, second, other = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.npz"
    assert main(["sample", str(run), "-n", "7", "--seed", "3", "--out", str(first)]) == 0
    batched = ["--batch-size", "2"]
    assert main(["sample", str(run), "-n", "5", "--seed", "3", *batched, "--out", str(second)]) == 0
    assert main(["sample", str(run), "-n", "7", "--seed", "4", "--out", str(other)]) == 0
    samples = np.load(first)["samples"]
    assert samples.dtype == np.float32
    assert samples.shape == (7, 2)
    np.testing.assert_allclose(samples[:5], np.load(second)["samples"], atol=1e-5)
    assert not np.allclose(samples, np.load(other)["samples"], atol=1e-3)


def test_sample_draws_a_grid(digits_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "deeper" / "grid.png"
    assert main(["sample", str(digits_run), "-n", "10", "--label", "3", "--out", str(file)]) == 0
    with Image.open(file) as image:
        assert image.mode == "RGB"
        assert image.width > 4 * 8


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_sample_takes_a_teacher(
    solver: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.npz"
    arguments = ["sample", "digits", "-n", "3", "--steps", "5", "--solver", solver, "--json"]
    assert main([*arguments, "--out", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)["nfe"] == {"heun": 9, "euler": 5}[solver]
    assert np.load(file)["samples"].shape == (3, 1, 8, 8)


def test_evaluate_writes_the_metrics_of_the_contract(
    digits_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(digits_run), "--reference", "digits", "--num", "64", "--json"]
    assert main(arguments) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics == json.loads((digits_run / "metrics.json").read_text())
    assert {
        "nfe",
        "num_samples",
        "seed",
        "rms_error",
        "frechet_distance",
        "teacher_frechet_distance",
        "reference_split_frechet_distance",
        "ms_per_sample",
        "teacher_nfe",
        "teacher_ms_per_sample",
    } <= metrics.keys()
    assert metrics["nfe"] == 1
    assert metrics["teacher_nfe"] == 79
    assert all(value is not None for value in metrics.values())


def test_evaluate_leaves_out_what_cannot_be_computed(run: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.npz"
    np.savez(reference, samples=np.zeros((8, 2), dtype=np.float32))
    assert main(["evaluate", str(run), "--reference", str(reference), "--num", "8"]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert "frechet_distance" not in metrics
    assert "rms_error" in metrics


def test_evaluate_without_the_teacher_says_so(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "moved"
    folder.mkdir()
    for name in ("network.json", "ema-0.999.safetensors", "config.toml"):
        (folder / name).write_bytes((digits_run / name).read_bytes())
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('"digits"', '"native:/nowhere"'))
    assert main(["evaluate", str(folder), "--reference", "digits", "--num", "32", "--json"]) == 0
    printed = capsys.readouterr()
    metrics = json.loads(printed.out)
    assert "without the teacher" in printed.err
    assert "frechet_distance" in metrics
    assert not {"rms_error", "teacher_nfe", "teacher_ms_per_sample"} & metrics.keys()


@pytest.mark.parametrize("name", ["digits", "mixture:ring"])
def test_inspect_describes_a_teacher(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_classes"] in (8, 10)
    assert facts["sigma_max"] == 80.0


def test_inspect_describes_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["trained_on"] == "mixture:ring"
    assert facts["trained_by"] == "pid"


def test_train_teacher_makes_a_teacher(tmp_path: Path) -> None:
    folder, file = tmp_path / "teacher", tmp_path / "x.npz"
    assert main(["train-teacher", "digits", "--out", str(folder), *TINY, *SMALL_NETWORK]) == 0
    arguments = ["sample", f"native:{folder}", "-n", "2", "--steps", "3", "--out", str(file)]
    assert main(arguments) == 0
    assert np.load(file)["samples"].shape == (2, 1, 8, 8)


def test_train_teacher_of_glyphs_takes_their_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pidistill.data.glyphs.NUM_IMAGES", 50)
    folder = tmp_path / "teacher"
    arguments = ["--max-train-steps", "2", "--batch-size", "4", "--set", "preview_steps=0"]
    assert main(["train-teacher", "glyphs", "--out", str(folder), *arguments]) == 0
    teacher = load_teacher(f"native:{folder}")
    assert (teacher.sample_shape, teacher.num_classes) == ((3, 32, 32), 10)
    network, _ = teacher.network_to_copy()
    assert network.config["patch_size"] == 2


def test_train_teacher_on_a_folder_of_images(tmp_path: Path) -> None:
    for label in ("cats", "dogs"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(3):
            pixels = np.full((8, 8, 3), 40 * index, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{index}.png")
    folder = tmp_path / "teacher"
    arguments = ["train-teacher", f"folder:{tmp_path / 'images'}", "--out", str(folder)]
    assert main([*arguments, *TINY, *SMALL_NETWORK]) == 0
    assert json.loads((folder / "network.json").read_text())["num_classes"] == 2


def test_config_file_is_below_flags(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(
        'teacher = "mixture:ring"\nmax_train_steps = 3\nbatch_size = 4\nseed = 5\n'
        '[network]\nname = "mlp"\n[network.config]\nwidth = 8\n[method]\nname = "pid"\n'
    )
    folder = tmp_path / "run"
    assert main(["distill", "--config", str(config), "--seed", "6", "--out", str(folder)]) == 0
    saved = (folder / "config.toml").read_text()
    assert "seed = 6" in saved
    assert "max_train_steps = 3" in saved


def test_quickstart_ends_with_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "first"
    arguments = ["quickstart", "--out", str(folder), "--max-train-steps", "20", "--num", "200"]
    assert main([*arguments, "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics == json.loads((folder / "metrics.json").read_text())
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") > 3
    assert page.count("<svg") == 5
    assert "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")
    assert 'src="http' not in page


@pytest.mark.parametrize("folder", ["/dev/null", "~nobody-of-that-name/x", "", "\0"])
def test_pairs_that_cannot_be_kept_leave_no_folder(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["distill", "--teacher", "mixture:ring", "--method", "knowledge", *TINY]
    place = ["--set", f"method.pairs={json.dumps(folder)}", "--out", str(tmp_path / "run")]
    fails([*arguments, *SMALL_NETWORK, *place], capsys)
    assert not (tmp_path / "run").exists()


class TestErrors:
    """Each ends with exit code 2 and one line that names the value and what was expected."""

    def test_unknown_verb(self, capsys: pytest.CaptureFixture[str]) -> None:
        fails(["distil"], capsys, "distil")

    def test_unknown_teacher(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["distill", "--teacher", "mixture:rings", "--out", str(tmp_path / "run")]
        fails(arguments, capsys, "rings", "ring")

    def test_missing_teacher_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        missing = str(tmp_path / "gone.pkl")
        fails(["distill", "--teacher", missing, "--out", str(tmp_path / "run")], capsys, missing)
        assert not (tmp_path / "run").exists()

    def test_no_teacher(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fails(["distill", "--out", str(tmp_path / "run")], capsys, "--teacher")

    def test_unknown_method(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["distill", "--teacher", "digits", "--method", "pids", "--out", str(tmp_path)]
        fails(arguments, capsys, "pids", "pid")

    def test_unknown_key(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = tmp_path / "run.toml"
        config.write_text('teacher = "digits"\nlearning_rat = 1.0\n[method]\nname = "pid"\n')
        arguments = ["distill", "--config", str(config), "--out", str(tmp_path / "run")]
        fails(arguments, capsys, "learning_rat", "'learning_rate'")

    def test_unknown_key_of_the_method(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["distill", "--teacher", "digits", "--set", "method.residul=velocity"]
        fails([*arguments, "--out", str(tmp_path / "run")], capsys, "residul", "'method.residual'")

    def test_wrong_type(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = tmp_path / "run.toml"
        config.write_text('teacher = "digits"\nbatch_size = "many"\n[method]\nname = "pid"\n')
        arguments = ["distill", "--config", str(config), "--out", str(tmp_path / "run")]
        fails(arguments, capsys, "batch_size", "many", "integer")

    def test_malformed_config(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        config = tmp_path / "run.toml"
        config.write_text("teacher = ")
        arguments = ["distill", "--config", str(config), "--out", str(tmp_path / "run")]
        fails(arguments, capsys, str(config))

    def test_missing_config(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["distill", "--config", str(tmp_path / "no.toml"), "--out", str(tmp_path / "r")]
        fails(arguments, capsys, "no.toml", "does not exist")

    def test_unknown_preset(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["distill", "--teacher", "digits", "--preset", "quick"]
        fails([*arguments, "--out", str(tmp_path / "run")], capsys, "quick", "fast")

    def test_folder_in_use(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["distill", "--teacher", "mixture:ring", "--out", str(run)]
        fails(arguments, capsys, "--resume")

    def test_resume_with_another_setting(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["distill", "--out", str(run), "--resume", "--learning-rate", "0.5"]
        fails(arguments, capsys, "learning_rate", "0.5")

    def test_folder_that_cannot_be_written(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        blocker = tmp_path / "file"
        blocker.write_text("")
        arguments = ["distill", "--teacher", "digits", "--out", str(blocker / "run"), *TINY]
        fails(arguments, capsys, "cannot write", str(blocker))

    def test_loss_that_is_not_finite(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "run"
        arguments = ["distill", "--teacher", "mixture:ring", "--out", str(folder)]
        steps = ["--max-train-steps", "300", "--batch-size", "8", "--learning-rate", "1e30"]
        fails([*arguments, *steps, *SMALL_NETWORK], capsys, "step", "learning-rate")

    def test_sampling_from_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fails(["sample", str(tmp_path), "--out", str(tmp_path / "x.png")], capsys, str(tmp_path))

    def test_unknown_file_type(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        fails(["sample", str(run), "--out", "x.jpg"], capsys, ".jpg", ".png", ".npz")

    def test_label_out_of_range(
        self, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["sample", str(digits_run), "--label", "10", "--out", str(tmp_path / "x.png")]
        fails(arguments, capsys, "label is 10", "0 .. 9")

    def test_several_steps_of_a_one_step_student(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["sample", str(run), "--steps", "4", "--out", str(tmp_path / "x.npz")]
        fails(arguments, capsys, "steps is 4", "1")

    def test_picture_of_what_is_no_image(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fails(["sample", str(run), "--out", str(tmp_path / "x.png")], capsys, "not images", ".npz")
        assert not (tmp_path / "x.png").exists()

    def test_weights_that_are_not_there(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["sample", str(run), "--ema", "0.5", "--out", str(tmp_path / "x.npz")]
        fails(arguments, capsys, "ema-0.5", "ema-0.999")

    def test_reference_of_another_shape(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["evaluate", str(run), "--reference", "digits", "--num", "8"]
        fails(arguments, capsys, "(1, 8, 8)", "(2,)")

    def test_damaged_reference(
        self, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "x.npz"
        file.write_bytes(b"not a zip file")
        fails(["evaluate", str(digits_run), "--reference", str(file)], capsys, str(file))

    def test_missing_device(
        self, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = ["sample", str(run), "--device", "gpu7", "--out", str(tmp_path / "x.npz")]
        fails(arguments, capsys, "gpu7")


def test_ctrl_c_saves_and_resume_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "pidistill", "distill", "--out", str(folder)]
    started = [*command, "--teacher", "mixture:ring", "--batch-size", "8", *SMALL_NETWORK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*started, "--max-train-steps", "100000", "--set", "logging_steps=1"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
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
    assert (
        main(["distill", "--out", str(folder), "--resume", "--max-train-steps", str(step + 2)]) == 0
    )
    assert json.loads(log.read_text().splitlines()[-1])["step"] == step + 2


@pytest.mark.parametrize("verb", ["", "quickstart", "distill", "sample", "evaluate", "inspect"])
def test_help_comes_without_torch(verb: str) -> None:
    code = (
        "import sys; from pidistill.cli import main; main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules"
    )
    arguments = [word for word in (verb, "-h") if word]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: pidistill" in done.stdout


def test_without_arguments_comes_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: pidistill" in capsys.readouterr().out


def test_a_config_file_need_not_name_the_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.toml"
    config.write_text("max_train_stepz = 3\n")
    arguments = ["distill", "--teacher", "digits", "--config", str(config)]
    fails([*arguments, "--out", str(tmp_path / "run")], capsys, "stepz", "'max_train_steps'")
    config.write_text("max_train_steps = 1\nbatch_size = 4\n")
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 0


def test_a_relative_teacher_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train-teacher", "digits", "--out", "teacher", *TINY, *SMALL_NETWORK]) == 0
    assert main(["distill", "--teacher", "native:teacher", "--out", "student", *TINY]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", "../student", "--reference", "digits", "--num", "8"]) == 0
    metrics = json.loads((tmp_path / "student" / "metrics.json").read_text())
    assert "rms_error" in metrics
    assert metrics["weights"] == "ema-0.999.safetensors"
    assert metrics["step"] == 4


class TestOddInput:
    def test_fewer_steps_than_done(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "run"
        arguments = ["distill", "--teacher", "mixture:ring", "--out", str(folder)]
        assert main([*arguments, *TINY, *SMALL_NETWORK]) == 0
        saved = (folder / "config.toml").read_text()
        fails(
            ["distill", "--out", str(folder), "--resume", "--max-train-steps", "2"],
            capsys,
            "max_train_steps is 2",
            "4 steps",
        )
        assert (folder / "config.toml").read_text() == saved

    def test_a_quickstart_in_a_folder_in_use(
        self, run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fails(["quickstart", "--out", str(run)], capsys, "not empty")

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_too_few_reference_samples(
        self, count: int, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "x.npz"
        np.savez(file, samples=np.zeros((count, 1, 8, 8), dtype=np.float32))
        fails(["evaluate", str(digits_run), "--reference", str(file)], capsys, str(file), "4")

    def test_a_bare_array(
        self, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "x.npz"
        with file.open("wb") as stream:
            np.save(stream, np.zeros((8, 1, 8, 8), dtype=np.float32))
        fails(["evaluate", str(digits_run), "--reference", str(file)], capsys, str(file))

    def test_nothing_is_created_for_a_model_that_is_not_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        fails(["sample", "missing", "--out", str(tmp_path / "deep" / "x.png")], capsys, "missing")
        assert not (tmp_path / "deep").exists()

    @pytest.mark.parametrize("line", ["[1]", '{"a": 1}', "{"])
    def test_a_damaged_log(self, line: str, run: Path, tmp_path: Path) -> None:
        folder = tmp_path / "copy"
        folder.mkdir()
        for name in ("network.json", "ema-0.999.safetensors", "config.toml"):
            (folder / name).write_bytes((run / name).read_bytes())
        (folder / "metrics.jsonl").write_text(line + "\n")
        assert main(["inspect", str(folder)]) == 0
