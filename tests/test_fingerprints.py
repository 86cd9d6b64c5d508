import dataclasses
import shutil

import pytest

from pidistill import load_teacher
from pidistill.data import fingerprint
from pidistill.denoiser import PreconditionedDenoiser
from pidistill.guidance import GuidedDenoiser
from pidistill.networks import new_network
from pidistill.precondition import EDMPrecondition, VPPrecondition
from pidistill.teachers.fingerprint import teacher_fingerprint

from method_runs import images_of


def test_another_teacher_at_the_same_place_is_another_teacher():
    teacher, other = load_teacher("digits"), load_teacher("digits").train()
    assert teacher_fingerprint(teacher) == teacher_fingerprint(other)  # however it is used
    next(other.parameters()).data.view(-1)[0] += 1e-3
    assert teacher_fingerprint(teacher) != teacher_fingerprint(other)


def test_a_teacher_is_more_than_its_weights():
    ring = load_teacher("mixture:ring")
    prints = {teacher_fingerprint(GuidedDenoiser(ring, scale)) for scale in (2.0, 7.0)}
    network = new_network("mlp", (2,), 0, {"width": 4, "num_blocks": 1, "embedding_width": 4})
    for precondition in (EDMPrecondition(), VPPrecondition(), EDMPrecondition(sigma_data=1.0)):
        teacher = PreconditionedDenoiser(network, precondition, sample_shape=(2,), source="here")
        prints.add(teacher_fingerprint(teacher))
    elsewhere = PreconditionedDenoiser(
        network, EDMPrecondition(), sample_shape=(2,), source="elsewhere"
    )
    assert len(prints) == 5
    assert teacher_fingerprint(elsewhere) in prints


def test_a_pipeline_with_a_decoder_may_be_moved(tmp_path):
    pipelines = pytest.importorskip("diffusers_pipelines")
    (tmp_path / "old").mkdir()
    pipelines.stable_diffusion(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    old, new = (load_teacher(pipelines.spec(tmp_path / name)) for name in ("old", "new"))
    assert teacher_fingerprint(old) == teacher_fingerprint(new)
    next(new.decoder.parameters()).data.view(-1)[0] += 1
    assert teacher_fingerprint(old) != teacher_fingerprint(new)


def test_images_are_known_by_what_they_are():
    teacher = load_teacher("mixture:ring")
    images = images_of(teacher, 8)
    assert fingerprint(images) == fingerprint(images_of(teacher, 8))
    assert fingerprint(images) != fingerprint(images_of(teacher, 9))
    relabelled = dataclasses.replace(images, labels=images.labels.flip(0))
    assert fingerprint(images) != fingerprint(relabelled)
