"""The training loop: what it computes, logs, keeps and refuses."""

import math

import pytest
import torch
from safetensors.torch import load_file

from pidistill import PidistillError, load_student, load_teacher
from pidistill.methods.denoising import Denoising, DenoisingSettings
from pidistill.settings import read_toml
from pidistill.training.assemble import build_trainer
from pidistill.training.checkpoint import best_checkpoint
from pidistill.training.config import parse_config
from pidistill.training.parts import DECAYS
from pidistill.training.trainer import Trainer

from method_runs import NETWORK, everything, images_of, log_lines, make_trainer, small, train


def config(**changes):
    return small("pid", **{"network": NETWORK, "ema_rates": [0.9, 0.5], **changes})


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a run that is over, and its reports."""
    folder = tmp_path_factory.mktemp("done")
    return folder, list(make_trainer(config(), folder).run())


def part_of(trainer):
    return trainer.state.parts["student"]


def trained_lines(folder):
    return [line for line in log_lines(folder) if line["step"] > 0]


# What a run leaves behind


def test_the_seed_and_nothing_else_decides_a_run(tmp_path, done):
    before = torch.random.get_rng_state()
    folder, _ = done
    again = train(config(), tmp_path / "again")
    expected = everything(folder)
    assert everything(tmp_path / "again") == expected
    train(config(seed=1), tmp_path / "other")
    assert everything(tmp_path / "other")["metrics.jsonl"] != expected["metrics.jsonl"]
    assert list(again.run()) == []  # it is over
    assert everything(tmp_path / "again") == expected
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (torch.tensor(1e-40) * 1).item() > 0  # subnormal numbers are flushed in a run only


def test_the_log_holds_the_means_of_its_steps(done):
    folder, reports = done
    lines, trained = log_lines(folder), trained_lines(folder)
    assert [line["step"] for line in lines] == [0, 3, 6, 9, 10]
    for line in lines:
        assert {"step", "images", "loss", "teacher_evals", "seconds", "grad_norm"} <= line.keys()
        assert line["images"] == line["teacher_evals"] == 8 * line["step"]
        assert line["grad_norm"] > 0
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    losses = [report.loss for report in reports]
    means = [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert [line["loss"] for line in trained] == pytest.approx([*means, losses[9]])
    assert [report.step for report in reports] == list(range(1, 11))
    assert [report.images for report in reports] == [8 * step for step in range(1, 11)]


def test_the_log_tells_the_first_loss_by_noise_level(tmp_path):
    """The bins are those of the drawn noise levels, and together they make the loss."""
    trainer = make_trainer(config(max_train_steps=1), tmp_path)
    losses = trainer.method.loss(trainer.batch(0))
    list(trainer.run())
    start, line = log_lines(tmp_path)
    assert start["loss"] == pytest.approx(losses.loss.mean().item())  # of the untrained student
    bins = losses.sigma.log().floor().long()
    expected = {f"ln_sigma {b}": losses.loss[bins == b].mean().item() for b in set(bins.tolist())}
    found = {name: loss for name, loss in line.items() if name.startswith("ln_sigma")}
    assert found == pytest.approx(expected)


def test_accumulated_gradients_give_the_losses_of_the_whole_batch(tmp_path, done):
    train(config(gradient_accumulation_steps=4), tmp_path)
    losses, expected = ([x["loss"] for x in trained_lines(f)] for f in (tmp_path, done[0]))
    assert losses == pytest.approx(expected, rel=1e-3)


def test_run_folder_and_checkpoint_hold_what_is_needed_to_sample(tmp_path):
    trainer = train(config(), tmp_path)
    student, state = trainer.method.student, tmp_path / "state/step-000000010"
    weights = [student.state_dict(), *map(part_of(trainer).averages.weights, range(2))]
    for ema, expected in zip((0, 0.9, 0.5), weights, strict=True):
        here, there = load_student(state, ema), load_student(tmp_path, ema)
        for name, weight in here.state_dict().items():
            assert torch.equal(weight, expected[name])
            assert torch.equal(weight, there.state_dict()[name])
    default = load_student(tmp_path)
    assert torch.equal(
        default.network.output.weight, load_student(tmp_path, 0.9).network.output.weight
    )
    for folder in (tmp_path, state):
        assert parse_config([read_toml(folder / "config.toml")]) == config()


def test_several_averages_follow_the_weights_at_their_own_rates(tmp_path):
    trainer = make_trainer(config(ema_warmup=False), tmp_path)
    weight = trainer.method.student.network.output.bias
    expected = [weight.detach().clone() for _ in range(2)]
    for _ in trainer.run():
        for average, rate in zip(expected, (0.9, 0.5), strict=True):
            average.mul_(rate).add_(weight.detach(), alpha=1 - rate)
    for rate, average in zip((0.9, 0.5), expected, strict=True):
        saved = load_file(tmp_path / f"ema-{rate}.safetensors")["network.output.bias"]
        torch.testing.assert_close(saved, average)
    assert not torch.allclose(*expected)


def checkpoints(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "state").iterdir())


def test_the_newest_checkpoints_are_kept_and_the_best_however_a_run_is_interrupted(tmp_path):
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
    train(config(**settings), tmp_path / "straight")
    best = best_checkpoint(tmp_path / "straight/state")
    assert checkpoints(tmp_path / "straight") == [int(best.name[5:]), 12]
    for stop_at in (3, 7, None):
        train(config(**settings), tmp_path / "stopped", stop_at=stop_at)
    assert best_checkpoint(tmp_path / "stopped/state").name == best.name
    more = {"keep_best": False, "checkpoints_total_limit": 3}
    train(config(**{**settings, **more}), tmp_path / "newest")
    assert checkpoints(tmp_path / "newest") == [8, 10, 12]


@pytest.mark.parametrize("spec", ["mixture:image", "mixture:ring"])
def test_previews_show_images_and_points_in_the_plane(tmp_path, spec):
    train(config(teacher=spec, max_train_steps=3, preview_steps=2), tmp_path)
    previews = sorted(file.name for file in tmp_path.glob("previews/*"))
    assert previews == [f"step-{step:09d}.png" for step in (0, 2, 3)]


# What goes wrong


def test_a_teacher_that_fails_stops_the_run_with_step_and_noise_levels(tmp_path):
    trainer = make_trainer(config(checkpointing_steps=1), tmp_path)
    steps = trainer.run()
    for _ in range(5):
        next(steps)
    teacher, denoise = trainer.method.teacher, trainer.method.teacher.forward

    def broken(x, sigma, label=None):
        return torch.where((sigma < 0.1)[:, None], math.nan, denoise(x, sigma, label))

    teacher.forward = broken
    with pytest.raises(PidistillError, match=r"loss is nan at step 6 \(sigma 0\.0\d+ \.\. 0\.0"):
        list(steps)
    assert load_student(tmp_path).generate(2, seed=0).x.isfinite().all()
    assert train(config(checkpointing_steps=1), tmp_path).step == 10


def test_a_loss_that_is_nan_before_training_stops_the_run(tmp_path):
    trainer = make_trainer(config(), tmp_path)
    trainer.method.teacher.forward = lambda x, sigma, label=None: x * math.nan
    with pytest.raises(PidistillError, match="the loss is nan at step 1"):
        list(trainer.run())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_learning_rate_that_is_too_large_stops_the_run_and_leaves_the_last_checkpoint(tmp_path):
    large = {"learning_rate": 1e37, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    with pytest.raises(PidistillError, match=r"step [1-5]( |;)"):
        train(config(**large, checkpointing_steps=1), tmp_path)
    for file in (tmp_path / "state").glob("*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path):
    trainer = make_trainer(config(checkpointing_steps=1), tmp_path)
    steps = trainer.run()
    next(steps)
    with torch.no_grad():
        part_of(trainer).averages.averages[1][0].fill_(math.inf)
    with pytest.raises(PidistillError, match=r"weight .* of ema-0\.5\.safetensors is not finite"):
        next(steps)
    assert load_student(tmp_path, 0.5).generate(2, seed=0).x.isfinite().all()
    assert next(make_trainer(config(), tmp_path).run()).step == 2


def test_two_trainers_cannot_share_a_folder(tmp_path):
    def files():
        return {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}

    first = make_trainer(config(), tmp_path).run()
    next(first)
    before = files()
    with pytest.raises(PidistillError, match="another process"):
        next(make_trainer(config(seed=1), tmp_path).run())
    assert files() == before
    first.close()
    assert next(make_trainer(config(), tmp_path).run()).step == 1


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(PidistillError, match="batch_size is 8; expected a multiple of 3"):
        build_trainer(config(gradient_accumulation_steps=3), tmp_path)


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [
        ("mlp", {"width": -1}, "does not accept these arguments"),
        ("mlp", {"width": "wide"}, "width is 'wide': input should be a valid integer"),
        ("mlp", {"width": 10**30}, "does not accept these arguments"),
        ("mlp", {"width": 10**6}, r"needs .* GB with these arguments, but this machine has"),
        ("mlp", {"depth": 3}, "unknown key 'depth'"),
        ("mlp", {"sample_shape": [3]}, r"the samples imply \[2\]"),
        ("mlp", {"num_classes": 2}, "the samples imply 8"),
        ("song_unet", {}, "needs square images"),
        ("perceptron", {}, "unknown network 'perceptron'"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_anything_is_written(
    tmp_path, name, table, words
):
    with pytest.raises(PidistillError, match=words) as caught:
        build_trainer(config(network={"name": name, "config": table}), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_config_without_teacher_or_data_is_refused(tmp_path):
    with pytest.raises(PidistillError, match="neither teacher nor data"):
        build_trainer(small("pid", None), tmp_path)


def test_a_method_that_needs_images_is_refused_without(tmp_path, mlp_teacher):
    method = Denoising.build(
        DenoisingSettings(), teacher=None, data=images_of(mlp_teacher), network=mlp_teacher.network
    )
    with pytest.raises(PidistillError, match="this method trains on images"):
        Trainer(small("denoising", None), method, tmp_path)


def test_the_student_of_a_teacher_with_a_network_is_a_copy(tmp_path):
    trainer = build_trainer(small("pid", "digits"), tmp_path)
    copied, original = trainer.method.student.network, load_teacher("digits").network
    assert torch.equal(copied.output.weight, original.output.weight)


# The optimizer


@pytest.mark.parametrize("scheduler", DECAYS)
@pytest.mark.parametrize(("warmup", "end"), [(0, 0.0), (3, 0.1), (20, 0.5)])
def test_the_learning_rate_warms_up_and_decays_to_its_share(tmp_path, scheduler, warmup, end):
    run = config(lr_scheduler=scheduler, lr_warmup_steps=warmup, lr_end=end)
    part = part_of(make_trainer(run, tmp_path))
    rates = [part.learning_rate(step, 100) / run.learning_rate for step in range(100)]
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
        assert rates[50] == pytest.approx(0.5, abs=1e-9)


def test_the_gradient_is_clipped_to_its_largest_norm(tmp_path):
    """RAdam's first steps are the gradient times the learning rate."""
    moved = []
    for norm in (None, 1e-4):
        run = config(optimizer="radam", max_grad_norm=norm, lr_warmup_steps=0)
        trainer = make_trainer(run, tmp_path / str(norm))
        parameters = list(trainer.method.student.parameters())
        before = torch.nn.utils.parameters_to_vector(parameters).detach()
        trainer.train_step()
        after = torch.nn.utils.parameters_to_vector(parameters).detach()
        moved.append((after - before).norm().item())
    assert moved[0] > 1e-5
    assert moved[1] == pytest.approx(1e-4 * 1e-2, rel=0.02)
