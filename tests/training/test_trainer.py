"""The training loop: a run is decided by its config, however often it is interrupted."""

import itertools
import json
import logging
import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pidistill import PidistillError, load_student, load_teacher
from pidistill.data import load_data
from pidistill.methods.denoising import Denoising, DenoisingSettings
from pidistill.networks.mlp import MLP
from pidistill.settings import read_toml
from pidistill.training.assemble import build_trainer
from pidistill.training.checkpoint import best_checkpoint
from pidistill.training.config import parse_config
from pidistill.training.parts import DECAYS
from pidistill.training.trainer import Trainer

from method_runs import log_lines

SMALL = {
    "teacher": "mixture:ring",
    "max_train_steps": 10,
    "batch_size": 16,
    "learning_rate": 1e-2,
    "lr_warmup_steps": 3,
    "ema_rates": [0.9, 0.5],
    "logging_steps": 3,
    "checkpointing_steps": 4,
    "network": {"name": "mlp", "config": {"width": 16, "num_blocks": 1, "embedding_width": 16}},
    "method": {"name": "pid", "num_nodes": 20},
}
DIGITS = {
    **{key: value for key, value in SMALL.items() if key != "teacher"},
    "data": "digits",
    "method": {"name": "denoising"},
}


def small(**changes):
    return parse_config([SMALL, changes])


def train(config, folder, *, stop_at=None, abandon_at=None):
    """Run a trainer to its end, to an orderly stop, or until it is abandoned."""
    trainer = build_trainer(config, folder)
    steps = trainer.run(should_stop=lambda: trainer.step == stop_at)
    for report in steps:
        if report.step == abandon_at:
            steps.close()
    return trainer


def student_part(trainer):
    return trainer.state.parts["student"]


def everything(folder):
    """All that a run leaves behind and that a resumed run must reproduce, bit for bit."""
    files = [*folder.glob("*.safetensors"), *folder.glob("state/step-*/*.safetensors")]
    contents = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    texts = {name: (folder / name).read_text() for name in ("config.toml", "network.json")}
    return {**contents, **texts, "metrics.jsonl": log_lines(folder, without=("seconds",))}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """What an uninterrupted run of a config leaves behind, each config trained once."""
    known = {}

    def of(config):
        key = config.model_dump_json()
        if key not in known:
            folder = tmp_path_factory.mktemp("straight")
            train(config, folder)
            known[key] = everything(folder)
        return known[key]

    return of


@pytest.mark.parametrize("stop_at", [1, 3, 4, 7])
@pytest.mark.parametrize("changes", [{}, {"optimizer": "radam", "gradient_accumulation_steps": 2}])
def test_a_run_that_is_stopped_and_resumed_is_the_straight_run(
    tmp_path, straight, stop_at, changes
):
    train(small(**changes), tmp_path, stop_at=stop_at)
    assert not (tmp_path / "state/step-000000010").exists()
    train(small(**changes), tmp_path)
    assert newest(tmp_path) == newest_of(straight(small(**changes)))


def newest(folder):
    return newest_of(everything(folder))


def newest_of(contents):
    """Without the checkpoints before the last: where they lie depends on the interruptions."""
    return {
        name: content
        for name, content in contents.items()
        if not name.startswith("state/") or name.startswith("state/step-000000010/")
    }


def test_training_on_data_resumes_too(tmp_path):
    config = parse_config([DIGITS])
    train(config, tmp_path / "straight")
    train(config, tmp_path / "stopped", stop_at=5)
    train(config, tmp_path / "stopped")
    assert newest(tmp_path / "stopped") == newest(tmp_path / "straight")


DROPOUT = {
    **DIGITS,
    "max_train_steps": 4,
    "preview_steps": 1,
    "network": {
        "name": "song_unet",
        "config": {"model_channels": 8, "channel_mult": [1], "num_blocks": 1, "dropout": 0.5},
    },
}


def test_dropout_resumes_too_and_does_not_depend_on_previews(tmp_path):
    config = parse_config([DROPOUT])
    train(config, tmp_path / "straight")
    train(config, tmp_path / "stopped", stop_at=2)
    train(config, tmp_path / "stopped")
    train(config.model_copy(update={"preview_steps": 0}), tmp_path / "unwatched")
    for name in ("student.safetensors", "metrics.jsonl"):
        straight, stopped, unwatched = (
            everything(tmp_path / run)[name] for run in ("straight", "stopped", "unwatched")
        )
        assert straight == stopped == unwatched
    previews = [sorted((tmp_path / r).glob("previews/*")) for r in ("straight", "stopped")]
    for ours, theirs in zip(*previews, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("abandon_at", [2, 4, 6, 9])
def test_a_run_that_dies_resumes_from_its_last_checkpoint(tmp_path, straight, abandon_at):
    train(small(), tmp_path, abandon_at=abandon_at)
    train(small(), tmp_path)
    assert everything(tmp_path) == straight(small())


def test_a_run_may_be_interrupted_many_times(tmp_path, straight):
    for stop_at in (2, 3, 8):
        train(small(), tmp_path, stop_at=stop_at)
        train(small(), tmp_path, abandon_at=stop_at + 1)
    train(small(), tmp_path)
    assert newest(tmp_path) == newest_of(straight(small()))


def test_a_run_that_is_done_stays_as_it_is(tmp_path, straight):
    train(small(), tmp_path)
    assert list(build_trainer(small(), tmp_path).run()) == []
    assert everything(tmp_path) == straight(small())


def test_the_seed_and_nothing_else_decides_a_run(tmp_path, straight):
    train(small(), tmp_path / "again")
    assert everything(tmp_path / "again") == straight(small())
    train(small(seed=1), tmp_path / "other")
    assert log_lines(tmp_path / "other", without=("seconds",)) != straight(small())["metrics.jsonl"]


def test_accumulated_gradients_give_the_losses_of_the_whole_batch(tmp_path, straight):
    train(small(gradient_accumulation_steps=4), tmp_path)
    logged = log_lines(tmp_path), straight(small())["metrics.jsonl"]
    losses, expected = ([line["loss"] for line in lines if line["step"] > 0] for lines in logged)
    assert losses == pytest.approx(expected, rel=1e-3)


def test_every_line_of_the_log_says_what_it_must(tmp_path):
    train(small(), tmp_path)
    lines = log_lines(tmp_path)
    trained = [line for line in lines if line["step"] > 0]
    assert [line["step"] for line in trained] == [3, 6, 9, 10]
    for line in lines:
        assert {
            *("step", "images", "loss", "teacher_evals", "seconds", "grad_norm"),
        } <= line.keys()
        assert line["images"] == line["teacher_evals"] == 16 * line["step"]
        assert math.isfinite(line["loss"])
        assert line["grad_norm"] > 0
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_the_log_tells_the_loss_by_noise_level(tmp_path):
    """The bins are those of the drawn noise levels, and together they make the loss."""
    trainer = build_trainer(small(max_train_steps=1, logging_steps=1), tmp_path)
    losses = trainer.method.loss(trainer.batch(0))
    list(trainer.run())
    (line,) = (line for line in log_lines(tmp_path) if line["step"] == 1)
    bins = losses.sigma.log().floor().long()
    expected = {
        str(edge): losses.loss[bins == edge].mean().item() for edge in sorted(set(bins.tolist()))
    }
    found = {name: loss for name, loss in line.items() if name.startswith("ln_sigma")}
    assert found == pytest.approx({f"ln_sigma {edge}": loss for edge, loss in expected.items()})


def test_the_first_line_is_of_the_untrained_student(tmp_path):
    trainer = build_trainer(small(), tmp_path)
    expected = trainer.method.loss(trainer.batch(0)).loss.mean().item()
    list(trainer.run())
    first = log_lines(tmp_path)[0]
    assert (first["step"], first["images"], first["teacher_evals"]) == (0, 0, 0)
    assert first["loss"] == pytest.approx(expected)


def test_a_run_leaves_torch_alone(tmp_path):
    before = torch.random.get_rng_state()
    train(small(), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
    tiny = torch.tensor(1e-40)
    assert (tiny * 1).item() > 0  # subnormal numbers are not flushed outside of the run


def test_a_logged_loss_is_the_mean_of_its_steps(tmp_path):
    reports = list(build_trainer(small(), tmp_path).run())
    losses = [report.loss for report in reports]
    trained = [line["loss"] for line in log_lines(tmp_path) if line["step"] > 0]
    means = [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert trained == pytest.approx([*means, losses[9]])
    assert [report.step for report in reports] == list(range(1, 11))
    assert [report.images for report in reports] == [16 * step for step in range(1, 11)]


def test_training_lowers_the_residual(tmp_path):
    train(small(max_train_steps=150, logging_steps=30), tmp_path)
    residuals = [line["residual"] for line in log_lines(tmp_path) if line["step"] > 0]
    assert residuals[-1] < 0.5 * residuals[0]


def test_a_run_folder_holds_what_is_needed_to_sample(tmp_path):
    trainer = train(small(), tmp_path)
    for ema in (None, 0, 0.9, 0.5):
        assert load_student(tmp_path, ema).generate(3, seed=0).x.shape == (3, 2)
    raw, averaged = load_student(tmp_path, 0), load_student(tmp_path)
    assert torch.equal(raw.network.output.weight, trainer.method.student.network.output.weight)
    assert torch.equal(
        averaged.network.output.weight,
        student_part(trainer).averages.weights(0)["network.output.weight"],
    )
    assert parse_config([read_toml(tmp_path / "config.toml")]) == small()


def test_several_averages_follow_the_weights_at_their_own_rates(tmp_path):
    """Against the definition, for one weight."""
    trainer = build_trainer(small(ema_warmup=False), tmp_path)
    weight = trainer.method.student.network.output.bias
    expected = [weight.detach().clone() for _ in range(2)]
    for _ in trainer.run():
        for average, rate in zip(expected, (0.9, 0.5), strict=True):
            average.mul_(rate).add_(weight.detach(), alpha=1 - rate)
    for rate, average in zip((0.9, 0.5), expected, strict=True):
        saved = load_file(tmp_path / f"ema-{rate}.safetensors")["network.output.bias"]
        torch.testing.assert_close(saved, average)
    assert not torch.allclose(*expected)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    train(small(checkpointing_steps=2, checkpoints_total_limit=3), tmp_path)
    steps = sorted(folder.name for folder in (tmp_path / "state").iterdir())
    assert steps == ["step-000000006", "step-000000008", "step-000000010"]


def test_the_best_checkpoint_is_kept_and_does_not_depend_on_interruptions(tmp_path):
    """A learning rate that is far too large after its warm-up: the best is not the last."""
    settings = {
        "checkpointing_steps": 2,
        "checkpoints_total_limit": 1,
        "max_train_steps": 12,
        "learning_rate": 3.0,
        "lr_warmup_steps": 12,
        "lr_scheduler": "constant",
        "method": {"name": "pid", "num_nodes": 20, "normalise": 0.0},
    }
    train(small(**settings), tmp_path / "straight")
    best = best_checkpoint(tmp_path / "straight/state")
    names = sorted(folder.name for folder in (tmp_path / "straight/state").iterdir())
    assert names == [best.name, "step-000000012"]
    for stop_at in (3, 7):
        train(small(**settings), tmp_path / "stopped", stop_at=stop_at)
    train(small(**settings), tmp_path / "stopped")
    assert best_checkpoint(tmp_path / "stopped/state").name == best.name
    train(small(**settings, keep_best=False), tmp_path / "without")
    assert [folder.name for folder in (tmp_path / "without/state").iterdir()] == names[1:]


def test_a_checkpoint_is_a_run_folder_to_sample_from(tmp_path):
    train(small(), tmp_path)
    (newest_state, *_) = sorted((tmp_path / "state").iterdir(), reverse=True)
    for ema in (None, 0, 0.5):
        here, there = load_student(newest_state, ema), load_student(tmp_path, ema)
        assert torch.equal(here.generate(3, seed=0).x, there.generate(3, seed=0).x)
    assert parse_config([read_toml(newest_state / "config.toml")]) == small()


@pytest.mark.parametrize("spec", ["mixture:image", "mixture:ring"])
def test_previews_are_drawn_where_samples_are_images(tmp_path, spec):
    train(small(teacher=spec, max_train_steps=3, preview_steps=2), tmp_path)
    previews = sorted(file.name for file in tmp_path.glob("previews/*"))
    steps = (0, 2, 3) if spec == "mixture:image" else ()
    assert previews == [f"step-{step:09d}.png" for step in steps]


# What goes wrong


def test_a_teacher_that_fails_stops_the_run_with_step_and_noise_levels(tmp_path):
    config = small(max_train_steps=20, checkpointing_steps=1)
    trainer = build_trainer(config, tmp_path)
    steps = trainer.run()
    for _ in range(5):
        next(steps)
    teacher, denoise = trainer.method.teacher, trainer.method.teacher.forward

    def broken(x, sigma, label=None):
        return torch.where((sigma < 0.1)[:, None], math.nan, denoise(x, sigma, label))

    teacher.forward = broken
    with pytest.raises(PidistillError, match=r"loss is nan at step 6 \(sigma 0\.00\d+ \.\. 0\.0"):
        list(steps)
    assert load_student(tmp_path).generate(2, seed=0).x.isfinite().all()
    again = train(config, tmp_path)
    assert again.step == 20


def test_a_learning_rate_that_is_too_large_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    config = small(
        learning_rate=1e37, lr_scheduler="constant", lr_warmup_steps=0, checkpointing_steps=1
    )
    with pytest.raises(PidistillError, match=r"step [1-5]( |;)"):
        train(config, tmp_path)
    for file in (tmp_path / "state").glob("*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path):
    trainer = build_trainer(small(checkpointing_steps=1), tmp_path)
    steps = trainer.run()
    next(steps)
    with torch.no_grad():
        student_part(trainer).averages.averages[1][0].fill_(math.inf)
    with pytest.raises(PidistillError, match=r"weight .* of ema-0\.5\.safetensors is not finite"):
        next(steps)
    assert trainer.step == 2
    assert load_student(tmp_path, 0.5).generate(2, seed=0).x.isfinite().all()
    assert build_trainer(small(), tmp_path).run().__next__().step == 2


def damage(file, how):
    if how == "flipped":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    else:
        file.unlink()


CHECKSUMMED = ["student.safetensors", "ema-0.5.safetensors", "optimizer.safetensors"]


@pytest.mark.parametrize(
    ("how", "name"),
    [
        *itertools.product(["flipped", "cut", "missing"], CHECKSUMMED),
        ("cut", "manifest.json"),
        ("missing", "manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path, straight, caplog, how, name):
    train(small(), tmp_path, stop_at=9)
    damage(tmp_path / "state/step-000000009" / name, how)
    with caplog.at_level(logging.WARNING, "pidistill"):
        train(small(), tmp_path)
    assert f"skipping damaged checkpoint {tmp_path}/state/step-000000009" in caplog.text
    assert newest(tmp_path) == newest_of(straight(small()))


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(tmp_path):
    train(small(), tmp_path, stop_at=5)
    for folder in (tmp_path / "state").iterdir():
        damage(folder / "student.safetensors", "cut")
    with pytest.raises(PidistillError, match=r"all checkpoints in .* are damaged"):
        train(small(), tmp_path)


class PowerCut(BaseException):
    """Not an error that anything should catch."""


def cut_power_at(monkeypatch, call):
    """Make the given call of `os.replace`, counted from 0, and all that follow, fail."""
    replace, calls = os.replace, iter(range(10**6))

    def failing(*arguments, **options):
        if next(calls) >= call:
            raise PowerCut
        return replace(*arguments, **options)

    monkeypatch.setattr(os, "replace", failing)


@pytest.mark.parametrize("call", range(2 + 3 * 4 + 1))
def test_the_run_resumes_whichever_rename_fails(tmp_path, straight, monkeypatch, call):
    """Config and description, then three times a checkpoint and three files of weights, and the
    first checkpoint when it is dropped. `tests/soak/write_failures.py` fails in between, too.
    """
    with monkeypatch.context() as context:
        cut_power_at(context, call)
        with pytest.raises(PowerCut):
            train(small(), tmp_path)
    checkpoints = list(tmp_path.glob("state/step-*"))
    if checkpoints and (tmp_path / "ema-0.9.safetensors").exists():
        assert load_student(tmp_path).generate(2, seed=0).x.isfinite().all()
    train(small(), tmp_path)
    assert newest(tmp_path) == newest_of(straight(small()))


KILLED = """
import json, sys
from pathlib import Path
import torch
from pidistill.training.assemble import build_trainer
from pidistill.training.config import parse_config
torch.set_num_threads(1)
trainer = build_trainer(parse_config([json.loads(sys.argv[1])]), Path(sys.argv[2]))
for report in trainer.run():
    print(report.step, flush=True)
"""


def test_a_killed_process_leaves_a_run_that_can_resume(tmp_path):
    """Killed while it saves after every step, so that most of its time is spent writing."""
    settings = {
        **SMALL,
        "lr_scheduler": "constant",
        "checkpointing_steps": 1,
        "max_train_steps": 100_000,
    }
    arguments = [sys.executable, "-c", KILLED, json.dumps(settings), str(tmp_path / "killed")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == 12:
                break
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert load_student(tmp_path / "killed").generate(2, seed=0).x.isfinite().all()
    end = parse_config([settings, {"max_train_steps": 20}])
    resumed = build_trainer(end, tmp_path / "killed")
    assert next(resumed.run()).step in (13, 14, 15)
    train(end, tmp_path / "killed")
    train(end, tmp_path / "straight")
    killed, expected = everything(tmp_path / "killed"), everything(tmp_path / "straight")
    for name in ("student.safetensors", "ema-0.9.safetensors", "metrics.jsonl"):
        assert killed[name] == expected[name]


def test_two_trainers_cannot_share_a_folder(tmp_path):
    first = build_trainer(small(), tmp_path).run()
    next(first)
    before = everything_but_checkpoints(tmp_path)
    second = build_trainer(small(seed=1), tmp_path).run()
    with pytest.raises(PidistillError, match="another process"):
        next(second)
    assert everything_but_checkpoints(tmp_path) == before
    first.close()
    assert next(build_trainer(small(), tmp_path).run()).step == 1


def everything_but_checkpoints(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(PidistillError, match="batch_size is 16; expected a multiple of 3"):
        build_trainer(small(gradient_accumulation_steps=3), tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("mlp", {"width": -1}, "does not accept these arguments"),
        ("mlp", {"width": "wide"}, "does not accept these arguments"),
        ("mlp", {"width": 10**30}, "does not accept these arguments"),
        ("mlp", {"width": 10**6}, r"needs .* GB with these arguments, but this machine has"),
        ("mlp", {"depth": 3}, "unexpected keyword argument 'depth'"),
        ("mlp", {"sample_shape": [3]}, r"the samples imply \[2\]"),
        ("mlp", {"num_classes": 2}, "the samples imply 8"),
        ("song_unet", {}, "needs square images"),
        ("perceptron", {}, "unknown network 'perceptron'"),
    ],
)
def test_an_impossible_network_is_refused_before_anything_is_written(tmp_path, name, config, words):
    with pytest.raises(PidistillError, match=words) as caught:
        build_trainer(small(network={"name": name, "config": config}), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_nan_before_training_stops_the_run(tmp_path):
    trainer = build_trainer(small(), tmp_path)
    trainer.method.teacher.forward = lambda x, sigma, label=None: x * math.nan
    with pytest.raises(PidistillError, match="the loss is nan at step 1"):
        list(trainer.run())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_config_without_teacher_or_data_is_refused(tmp_path):
    config = parse_config([{key: value for key, value in SMALL.items() if key != "teacher"}])
    with pytest.raises(PidistillError, match="neither teacher nor data"):
        build_trainer(config, tmp_path)


def test_a_method_that_needs_images_is_refused_without(tmp_path):
    network = MLP((1, 8, 8), num_classes=10, width=8, num_blocks=1)
    method = Denoising.build(
        DenoisingSettings(), teacher=None, data=load_data("digits"), network=network
    )
    with pytest.raises(PidistillError, match="this method trains on images"):
        Trainer(parse_config([DIGITS]), method, tmp_path)


def test_the_student_of_a_teacher_with_a_network_is_a_copy(tmp_path):
    config = parse_config([{**SMALL, "teacher": "digits", "max_train_steps": 1}])
    trainer = build_trainer(config.model_copy(update={"network": None}), tmp_path)
    copied, original = trainer.method.student.network, load_teacher("digits").network
    assert torch.equal(copied.output.weight, original.output.weight)


# The learning rate


@pytest.mark.parametrize("scheduler", DECAYS)
@pytest.mark.parametrize(("warmup", "end"), [(0, 0.0), (3, 0.1), (20, 0.5)])
def test_the_learning_rate_warms_up_and_decays_to_its_share(tmp_path, scheduler, warmup, end):
    config = small(lr_scheduler=scheduler, lr_warmup_steps=warmup, lr_end=end, max_train_steps=100)
    part = student_part(build_trainer(config, tmp_path))
    rates = [part.learning_rate(step, 100) / config.learning_rate for step in range(100)]
    assert all(min(end, 1 / (warmup + 1)) <= rate <= 1 for rate in rates)
    rising, falling = rates[: max(0, warmup - 1)], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if warmup:
        assert rates[0] == pytest.approx(1 / warmup)
    if scheduler == "constant":
        assert falling[-1] == 1
    else:
        assert falling[-1] == pytest.approx(end, abs=0.02)
        middle = part.learning_rate(50, 100) / config.learning_rate
        assert middle == pytest.approx(0.5, abs=1e-9)


def test_the_optimizer_takes_the_learning_rate_of_its_step(tmp_path):
    trainer = build_trainer(small(), tmp_path)
    for report in trainer.run():
        part = student_part(trainer)
        (group,) = part.optimizer.param_groups
        assert group["lr"] == part.learning_rate(report.step - 1, 10)


def test_the_gradient_is_clipped_to_its_largest_norm(tmp_path):
    """RAdam's first steps are the gradient times the learning rate."""
    moved = []
    for norm in (None, 1e-4):
        config = small(optimizer="radam", max_grad_norm=norm, max_train_steps=1, lr_warmup_steps=0)
        trainer = build_trainer(config, tmp_path / str(norm))
        before = torch.nn.utils.parameters_to_vector(trainer.method.student.parameters()).detach()
        list(trainer.run())
        after = torch.nn.utils.parameters_to_vector(trainer.method.student.parameters()).detach()
        moved.append((after - before).norm().item())
    assert moved[0] > 1e-5
    assert moved[1] == pytest.approx(1e-4 * 1e-2, rel=0.02)
