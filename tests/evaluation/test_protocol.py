"""One pass over samples: the same whatever the blocks, the processes, or an interruption."""

import json
import time

import pytest
import torch

from pidistill import load_teacher
from pidistill.data import load_data
from pidistill.evaluation import protocol, sampling
from pidistill.evaluation.collect import summarise
from pidistill.evaluation.evaluate import error_metrics
from pidistill.evaluation.features import FeatureBatch, FeatureNetwork, features_for
from pidistill.evaluation.measures import error_values, gather_evidence, metrics_of
from pidistill.evaluation.protocol import (
    Terms,
    look_at_samples,
    look_at_teacher,
    samples_to_draw,
    stored_samples,
)
from pidistill.evaluation.reference import ReferenceData, collect_reference
from pidistill.evaluation.sampling import teacher_samples
from pidistill.evaluation.subject import samples_subject, student_subject, teacher_subject
from pidistill.images import from_uint8, to_uint8
from pidistill.processes import Processes, join_processes
from pidistill.students.trajectory import TrajectoryStudent

from together import together

NEEDS = ("statistics", "features", "class_scores")
NAMES = ("fid", "kid", "is", "precision-recall")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(sampling, "BLOCK", 16)


@pytest.fixture(scope="module")
def digits():
    """The digits teacher and a student that starts as its copy."""
    teacher = load_teacher("digits")
    return teacher, TrajectoryStudent.from_teacher(teacher, anchored=True)


def test_a_pass_sees_what_the_whole_shows(digits, monkeypatch):
    monkeypatch.setattr(protocol, "KEPT", 20)
    _, student = digits
    network = features_for((1, 8, 8))
    seen = look_at_samples(student_subject(student), Terms(num=40, names=NAMES, network=network), 3)
    whole = to_uint8(student.generate(40, seed=3).x)
    assert (seen.x.int() - whole[:20].int()).abs().max() <= 1
    expected = summarise(network, [from_uint8(whole)], 40, NEEDS)
    torch.testing.assert_close(seen.summary["features"], expected["features"], rtol=1e-3, atol=1e-3)
    assert seen.summary["class_scores"] == pytest.approx(expected["class_scores"], rel=1e-3)
    assert seen.nfe == 1
    assert seen.duplicates == 0
    assert seen.errors is None


def test_errors_are_those_of_exact_samples(digits):
    teacher, student = digits
    subject = student_subject(student, teacher)
    seen = look_at_teacher(subject, Terms(num=40, error_num=20), 3)
    drawn, solved = student.generate(20, seed=3), teacher_samples(teacher, 20, seed=3)
    expected = error_metrics(drawn.x, solved.x)
    assert error_values(seen.errors)["rms_error"] == pytest.approx(expected["rms_error"], rel=1e-4)
    assert len(seen.errors) == 20
    assert seen.nfe == 79
    assert seen.summary == {}


def test_anybodys_samples_are_measured_by_the_same_code(digits):
    teacher, _ = digits
    network = features_for((1, 8, 8))
    terms = Terms(num=24, names=("fid",), network=network)
    own = look_at_samples(teacher_subject(teacher, steps=4), terms, 0)
    x = teacher_samples(teacher, 24, seed=0, steps=4, batch_size=16).x
    for given in (x, to_uint8(x)):
        seen = look_at_samples(samples_subject(given, "rival"), terms, 0)
        for one, other in zip(own.summary["statistics"], seen.summary["statistics"], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
        assert seen.nfe == 0
    assert own.nfe == 7


def test_a_student_that_always_draws_the_same_is_found_out(digits):
    x = torch.zeros(40, 1, 8, 8)
    x[0] = 1
    seen = look_at_samples(samples_subject(x, "rival"), Terms(num=40), 0)
    assert seen.duplicates == 38


def test_latents_are_measured_as_images():
    class Decoder(torch.nn.Module):
        def forward(self, x):
            return x[:, :1].repeat_interleave(2, 2).repeat_interleave(2, 3)

    latents = torch.rand(20, 4, 4, 4) * 2 - 1
    subject = samples_subject(latents, "latents")._replace(decoder=Decoder())
    terms = Terms(num=20, names=("fid",), network=features_for((1, 8, 8)))
    seen = look_at_samples(subject, terms, 0)
    assert torch.equal(seen.x, to_uint8(Decoder()(latents)))


def test_what_was_kept_is_not_drawn_again(digits, tmp_path, monkeypatch):
    teacher, student = digits
    drawn = []
    terms = Terms(num=40, error_num=20, store=tmp_path / "samples", on_batch=drawn.append)
    subject = student_subject(student, teacher)
    first = look_at_samples(subject, terms, 0)
    look_at_teacher(subject, terms, 0)

    def refuse(*args, **kwargs):
        raise AssertionError("drew again")

    with monkeypatch.context() as patch:
        patch.setattr(student, "sample", refuse)
        again = look_at_samples(student_subject(student, teacher), terms, 0)
    assert torch.equal(first.x, again.x)
    assert sum(drawn) == 40 + 20 + 40
    for folder in stored_samples(subject, terms, 0):
        folder.remove()
    assert not terms.store.exists()


def test_what_each_process_draws_adds_up():
    for count in (1, 2, 3, 7):
        own = [samples_to_draw(100, Processes(index, count)) for index in range(count)]
        assert sum(own) == 100


def _measure(file, store=None):
    """The metrics of a student by this process and those beside it, written by the main one."""
    teacher = load_teacher("digits")
    student = TrajectoryStudent.from_teacher(teacher, anchored=True)
    network = features_for((1, 8, 8))
    data = ReferenceData("digits", load_data("digits").images[:200], None, None)
    summary = collect_reference(data, network, ["statistics", "split_half", "features"])
    terms = Terms(
        num=100,
        error_num=40,
        names=NAMES,
        network=network,
        processes=join_processes(),
        store=store,
    )
    subject = student_subject(student, teacher)
    names = (*NAMES, "error", "diversity")
    evidence = gather_evidence(subject, terms, 5, names, reference=summary)
    if evidence is not None:
        file.write_text(json.dumps(metrics_of(evidence, names)))


@pytest.mark.parametrize("num", [2, 3])
def test_any_number_of_processes_gives_the_same_metrics(num, tmp_path):
    _measure(tmp_path / "one.json")
    assert (
        together(num, lambda rank: _measure(tmp_path / "more.json", tmp_path / "samples"))
        == [""] * num
    )
    assert (tmp_path / "more.json").read_text() == (tmp_path / "one.json").read_text()


def test_the_first_samples_do_not_depend_on_how_many_follow(digits):
    _, student = digits
    network = features_for((1, 8, 8))
    few, more = (
        look_at_samples(student_subject(student), Terms(num=n, names=("kid",), network=network), 0)
        for n in (32, 48)
    )
    assert torch.equal(few.summary["features"], more.summary["features"][:32])


@pytest.mark.slow
def test_the_pass_costs_little_beside_the_feature_network():
    """In processor time, for a network that is light beside Inception: 1 ms a sample."""

    class Convolutions(FeatureNetwork):
        name, num_features = "convolutions", 256

        def __init__(self):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Conv2d(3, 64, 3, padding=1),
                torch.nn.ReLU(),
                torch.nn.Conv2d(64, 128, 3, stride=2, padding=1),
                torch.nn.ReLU(),
                torch.nn.Conv2d(128, 256, 3, stride=2, padding=1),
                torch.nn.AdaptiveAvgPool2d(1),
                torch.nn.Flatten(),
            )

        def extract(self, x):
            return FeatureBatch(self.layers(x), None)

    network = Convolutions().eval().requires_grad_(False)
    x = torch.randint(0, 256, (2048, 3, 32, 32), dtype=torch.uint8)
    terms = Terms(num=len(x), names=("fid",), network=network)

    def seconds(work):
        times = []
        for _ in range(3):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
        return min(times)

    def network_alone():
        for part in x.split(protocol.FEATURES_AT_ONCE):
            network.extract(from_uint8(part))

    alone = seconds(network_alone)
    whole = seconds(lambda: look_at_samples(samples_subject(x, "x"), terms, 0))
    assert whole < 1.1 * alone
