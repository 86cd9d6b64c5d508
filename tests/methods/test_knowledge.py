"""Knowledge distillation: pairs made once, kept and shared, and the loss on them."""

import json

import pytest
import torch

from pidistill import PidistillError, initial_noise, load_teacher, solve
from pidistill.guidance import GuidedDenoiser
from pidistill.methods import pairs as pairs_module
from pidistill.methods.pairs import PairFolder
from pidistill.teachers.mixture import MixtureDenoiser

from method_runs import log_lines, make_trainer, small, train


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(pairs_module, "SHARD", 16)


@pytest.fixture
def ring():
    return load_teacher("mixture:ring")


def pairs_of(folder, teacher, num, **changes):
    settings = {"spec": "a spec", "solver": "heun", "steps": 4, "seed": 0, "batch_size": 8}
    return PairFolder(folder, teacher, num=num, **{**settings, **changes})


def made(folder, teacher, num, **changes):
    """Make and load pairs; returns them and the count after every batch."""
    pairs = pairs_of(folder, teacher, num, **changes)
    start, *done = pairs.make()
    assert start == 0
    return pairs.load(), done


# The pairs


def test_a_pair_is_noise_and_the_teachers_solution_of_it(tmp_path, ring):
    pairs, done = made(tmp_path, ring, 40)
    assert done == [8, 16, 24, 32, 40]
    assert pairs.z.shape == pairs.x.shape == (40, 2)
    assert pairs.z.dtype == pairs.x.dtype == torch.float32
    assert torch.equal(pairs.label, torch.arange(40) % 8)
    expected = solve(ring, pairs.z, steps=4, label=pairs.label)
    torch.testing.assert_close(pairs.x, expected.x, rtol=1e-5, atol=1e-5)
    assert 0.8 * 80 < pairs.z.std() < 1.2 * 80


def test_pair_i_depends_on_the_seed_and_i_only(tmp_path, ring, gaussian):
    whole, _ = made(tmp_path / "whole", ring, 40)
    part, _ = made(tmp_path / "part", ring, 21, batch_size=5)
    other, _ = made(tmp_path / "other", ring, 40, seed=1)
    assert torch.equal(part.z, whole.z[:21])
    torch.testing.assert_close(part.x, whole.x[:21], rtol=1e-5, atol=1e-5)
    assert not torch.isclose(other.z, whole.z).any()
    assert made(tmp_path / "unlabelled", gaussian, 20)[0].label is None


def test_no_sample_of_a_student_is_a_pair_that_it_was_trained_on(tmp_path, ring):
    pairs, _ = made(tmp_path, ring, 40)
    assert not torch.isclose(initial_noise(ring, 40, seed=0), pairs.z).any()


def stamps(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("shard-*")}


def test_existing_shards_are_kept(tmp_path, ring):
    for done in pairs_of(tmp_path, ring, 40).make():
        if done == 24:  # in the middle of the second shard, which is lost
            break
    first = stamps(tmp_path)
    assert list(first) == ["shard-00000.safetensors"]
    cut, done = made(tmp_path, ring, 40)
    assert done == [16, 24, 32, 40]
    assert stamps(tmp_path).items() >= first.items()
    straight, _ = made(tmp_path / "straight", ring, 40)
    assert all(torch.equal(a, b) for a, b in zip(cut, straight, strict=True))
    assert made(tmp_path, ring, 40)[1] == [16, 32, 40]


def test_missing_pairs_are_added_and_surplus_ones_ignored(tmp_path, ring):
    made(tmp_path, ring, 20)
    more, done = made(tmp_path, ring, 45)
    assert done == [16, 28, 32, 40, 45]
    straight, _ = made(tmp_path / "straight", ring, 45)
    assert torch.equal(more.z, straight.z)
    assert torch.equal(more.label, straight.label)
    torch.testing.assert_close(more.x, straight.x, rtol=1e-5, atol=1e-5)
    fewer, done = made(tmp_path, ring, 10)
    assert done == [10]
    assert torch.equal(fewer.x, more.x[:10])


def test_a_run_that_wants_fewer_leaves_the_pairs_of_another_one(tmp_path, ring):
    """Both make the same shard at the same time; the one that wants more is done first."""
    few, more = pairs_of(tmp_path, ring, 12), pairs_of(tmp_path, ring, 16)
    making = few.make()
    assert [next(making), next(making)] == [0, 8]
    list(more.make())
    list(making)
    assert len(more.load().x) == 16


def test_a_shard_that_is_too_short_is_refused(tmp_path, ring):
    made(tmp_path, ring, 12)
    with pytest.raises(PidistillError, match="holds 12 pairs; expected 16"):
        pairs_of(tmp_path, ring, 16).load()


def test_every_seed_has_its_own_pairs_unless_it_shares_a_folder(tmp_path):
    def noise(folder, seed, **settings):
        config = small("knowledge", seed=seed, method=settings)
        trainer = make_trainer(config, tmp_path / folder)
        list(trainer.prepare())
        return trainer.method.pairs.z

    assert torch.equal(noise("a", 1), noise("b", 1))
    assert not torch.equal(noise("a", 1), noise("c", 2))
    assert torch.equal(noise("d", 2, pairs_seed=1), noise("a", 1))
    shared = str(tmp_path / "pairs")
    assert torch.equal(noise("e", 1, pairs=shared), noise("f", 2, pairs=shared))


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", 5), ("solver", "euler"), ("seed", 3)],
)
def test_pairs_made_with_other_settings_are_refused(tmp_path, ring, key, value):
    made(tmp_path, ring, 20)
    with pytest.raises(PidistillError, match=f"made with {key} .*; choose another folder"):
        made(tmp_path, ring, 20, **{key: value})


def test_pairs_of_another_teacher_under_the_same_name_are_refused(tmp_path, ring):
    made(tmp_path, ring, 20)
    with pytest.raises(PidistillError, match=r"made by a spec, whose weights or settings differ"):
        made(tmp_path, GuidedDenoiser(ring, 2.0), 20)
    ring.means[0, 0] += 1e-6
    with pytest.raises(PidistillError, match=r"made by a spec, whose weights or settings differ"):
        made(tmp_path, ring, 20)


def test_pairs_of_a_teacher_that_was_moved_are_kept(tmp_path, ring):
    pairs, _ = made(tmp_path, ring, 20)
    again, done = made(tmp_path, ring, 20, spec="another spec")
    assert done == [16, 20]  # two shards, which were there
    assert torch.equal(again.x, pairs.x)


def test_a_damaged_shard_is_refused_in_one_line(tmp_path, ring):
    made(tmp_path, ring, 20)
    file = tmp_path / "shard-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(PidistillError, match=r"shard-00001\.safetensors is not a readable"):
        made(tmp_path, ring, 20)


# Runs


def test_the_pairs_lie_in_the_run_folder(tmp_path):
    train(small("knowledge"), tmp_path)
    manifest = json.loads((tmp_path / "pairs/manifest.json").read_text())
    assert manifest["teacher"] == "mixture:ring"
    assert (manifest["solver"], manifest["steps"], manifest["seed"]) == ("heun", 4, 0)
    assert len(list((tmp_path / "pairs").glob("shard-*"))) == 3
    assert {line["teacher_evals"] for line in log_lines(tmp_path)} == {40 * 7}


def test_two_runs_may_share_their_pairs(tmp_path, monkeypatch):
    shared = {"pairs": str(tmp_path / "shared")}
    train(small("knowledge", method=shared), tmp_path / "first")
    before = stamps(tmp_path / "shared")
    assert len(before) == 3

    def forbidden(self, x, sigma, label=None):
        raise AssertionError("the teacher was asked")

    monkeypatch.setattr(MixtureDenoiser, "forward", forbidden)
    train(small("knowledge", method=shared, seed=7), tmp_path / "second")
    assert stamps(tmp_path / "shared") == before
    assert not (tmp_path / "second/pairs").exists()
    with pytest.raises(PidistillError, match="made with steps 4, but this run needs 9"):
        train(small("knowledge", method={**shared, "steps": 9}), tmp_path / "third")


def test_a_run_stopped_while_making_pairs_resumes(tmp_path):
    trainer = make_trainer(small("knowledge"), tmp_path)
    asked = iter([False, True])
    assert list(trainer.run(should_stop=lambda: next(asked))) == []
    assert len(list((tmp_path / "pairs").glob("shard-*"))) == 1
    assert (tmp_path / "config.toml").exists()
    assert not (tmp_path / "state").exists()
    assert train(small("knowledge"), tmp_path).step == 10
