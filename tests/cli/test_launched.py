"""Commands started as several processes: one prints, one writes, one says what went wrong."""

import contextlib
import os
import signal
import time

import pytest

from pidistill.cli import main
from pidistill.training.trainer import Trainer

from together import together

RUN = ["distill", "--teacher", "mixture:ring", "--batch-size", "8", "--max-train-steps", "6"]
RUN += ["--set", 'network={name="mlp",config={width=8,num_blocks=1}}']


def launched(folder, num, *arguments, before=lambda rank: None):
    """Run a command in `num` processes.

    Returns:
        The exit codes, and what each printed to both streams.
    """

    def work(rank):
        before(rank)
        with (folder / f"printed-{rank}").open("w") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                code = main(list(arguments))
        (folder / f"code-{rank}").write_text(str(code))
        if code == 2:
            os._exit(0)  # as a process would, and not wait for the others

    together(num, work)
    codes = [int((folder / f"code-{rank}").read_text()) for rank in range(num)]
    return codes, [(folder / f"printed-{rank}").read_text() for rank in range(num)]


def test_a_run_prints_once_and_samples_are_those_of_one_process(tmp_path):
    codes, printed = launched(tmp_path, 2, *RUN, "--out", str(tmp_path / "run"))
    assert codes == [0, 0]
    assert "holds the student after 6 steps" in printed[0]
    assert printed[1] == ""
    files = []
    for num in (1, 2, 3):
        file = tmp_path / f"{num}.npz"
        arguments = ["sample", str(tmp_path / "run"), "-n", "23", "--batch-size", "5"]
        codes, printed = launched(tmp_path, num, *arguments, "--json", "--out", str(file))
        assert codes == [0] * num
        assert printed[0].count("num_samples") == 1
        assert printed[1:] == [""] * (num - 1)
        files.append(file.read_bytes())
    assert files[0] == files[1] == files[2]


def test_more_processes_than_batches_is_no_matter(tmp_path):
    for num in (1, 3):
        arguments = ["sample", "mixture:ring", "-n", "8", "--steps", "3"]
        codes, _ = launched(tmp_path, num, *arguments, "--out", str(tmp_path / f"{num}.npz"))
        assert codes == [0] * num
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()


def test_a_mistake_is_printed_once(tmp_path):
    codes, printed = launched(
        tmp_path, 2, *RUN, "--batch-size", "7", "--out", str(tmp_path / "run")
    )
    assert codes == [2, 2]
    assert "".join(printed).count("error:") == 1
    assert "batch_size is 7; expected a multiple of 2" in "".join(printed)


@pytest.mark.parametrize("failing", [0, 1])
def test_what_goes_wrong_in_one_process_ends_all_and_is_said_by_that_one(tmp_path, failing):
    def before(rank):
        step = Trainer.train_step

        def broken(trainer):
            if rank == failing and trainer.step == 3:
                raise OSError(28, "No space left on device", "a file")
            return step(trainer)

        Trainer.train_step = broken

    began = time.monotonic()
    arguments = [*RUN, "--set", "checkpointing_steps=2", "--out", str(tmp_path / "run")]
    codes, printed = launched(tmp_path, 2, *arguments, before=before)
    assert codes == [2, 2]
    assert time.monotonic() - began < 60
    assert "a file" in printed[failing]
    assert "".join(printed).count("error:") == 1
    assert "Traceback" not in "".join(printed)
    assert (tmp_path / "run" / "state" / "step-000000002").is_dir()


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    def before(rank):
        step = Trainer.train_step

        def signalled(trainer):
            if rank == 1 and trainer.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(trainer)

        Trainer.train_step = signalled

    codes, printed = launched(tmp_path, 2, *RUN, "--out", str(tmp_path / "run"), before=before)
    assert codes == [130, 130]
    assert [file.name for file in (tmp_path / "run" / "state").iterdir()] == ["step-000000003"]
    assert "interrupted" in printed[0]
    codes, _ = launched(tmp_path, 2, *RUN, "--out", str(tmp_path / "run"), "--resume")
    assert codes == [0, 0]


def test_processes_that_were_restarted_go_on_without_being_told(tmp_path, monkeypatch):
    arguments = [*RUN, "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert main(arguments) == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert main(arguments) == 0
