"""Checkpoints: whole or absent, and checked when they are read."""

import json
from hashlib import sha256

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pidistill import PidistillError
from pidistill.storage import read_tensors
from pidistill.training import checkpoint
from pidistill.training.checkpoint import (
    best_checkpoint,
    clear_unfinished,
    newest_checkpoint,
    write_checkpoint,
)


def write(state, step, keep=2, best=None):
    tensors = {"a.safetensors": {"x": torch.full((3,), float(step))}, "b.safetensors": {}}
    values, texts = {"seconds": 0.1 * step}, {"c.txt": "text"}
    return write_checkpoint(state, step, tensors, values, keep=keep, texts=texts, best=best)


def no_warnings(line):
    raise AssertionError(line)


def test_the_newest_checkpoint_is_found_with_its_values(tmp_path):
    for step in (5, 10, 100):
        write(tmp_path, step, keep=9)
    folder, manifest = newest_checkpoint(tmp_path, no_warnings)
    assert folder == tmp_path / "step-000000100"
    assert manifest["step"] == 100
    assert manifest["values"] == {"seconds": 0.1 * 100}
    assert torch.equal(read_tensors(folder / "a.safetensors")["x"], torch.full((3,), 100.0))


@settings(max_examples=10)  # every checkpoint is flushed to the disk
@given(st.lists(st.integers(0, 10**9 - 1), min_size=1, max_size=6, unique=True), st.integers(1, 4))
def test_all_but_the_newest_are_dropped(tmp_path_factory, steps, keep):
    state = tmp_path_factory.mktemp("state")
    for step in sorted(steps):
        write(state, step, keep)
    assert kept(state) == sorted(steps)[-keep:]


def test_nothing_is_found_where_there_is_nothing(tmp_path):
    assert newest_checkpoint(tmp_path / "nowhere", no_warnings) is None
    (tmp_path / ".step-000000005.tmp").mkdir()  # a write that was cut off
    assert newest_checkpoint(tmp_path, no_warnings) is None


def test_a_failed_write_leaves_the_existing_checkpoints(tmp_path, monkeypatch):
    write(tmp_path, 5)
    files = []

    def failing(path):
        files.append(path)
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "sync", failing)
    with pytest.raises(OSError, match="no space left"):
        write(tmp_path, 10)
    assert files
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path, no_warnings)[1]["step"] == 5
    write(tmp_path, 10)
    assert newest_checkpoint(tmp_path, no_warnings)[1]["step"] == 10
    assert len(list(tmp_path.iterdir())) == 2


def test_the_best_is_kept_beside_the_newest_and_found_again(tmp_path):
    assert best_checkpoint(tmp_path / "nowhere") is None
    for step, best in ((1, None), (2, 2), (3, 2), (4, 2)):
        write(tmp_path, step, keep=1, best=best)
    assert kept(tmp_path) == [2, 4]
    assert best_checkpoint(tmp_path) == tmp_path / "step-000000002"
    (tmp_path / "step-000000004/manifest.json").write_text("{}")
    assert best_checkpoint(tmp_path) == tmp_path / "step-000000002"
    write(tmp_path, 5, keep=1, best=5)
    assert kept(tmp_path) == [5]
    write(tmp_path, 6, keep=1)
    assert best_checkpoint(tmp_path) is None


def test_a_checkpoint_before_damaged_ones_takes_their_place(tmp_path):
    """Otherwise they would count as the newest, and the good one would be dropped."""
    for step in (4, 9, 12):
        write(tmp_path, step, keep=3)
    write(tmp_path, 8, keep=1)
    assert kept(tmp_path) == [8]


def test_what_a_killed_process_left_is_cleared(tmp_path):
    write(tmp_path, 3)
    for name in (".step-000000004.tmp", ".step-000000001.dropped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "student.safetensors").write_bytes(b"half")
    clear_unfinished(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000000003"]


def kept(state):
    return sorted(int(folder.name.removeprefix("step-")) for folder in state.iterdir())


def every_file(folder):
    return sorted(file.name for file in folder.iterdir())


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-3]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "zeros": lambda file: file.write_bytes(bytes(len(file.read_bytes()))),
    "another": lambda file: file.write_bytes(b"x" * len(file.read_bytes())),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a dead link": lambda file: (file.unlink(), file.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_to_every_file_is_found(tmp_path, damage):
    for name in ("a.safetensors", "b.safetensors", "c.txt", "manifest.json"):
        state = tmp_path / name
        write(state, 1)
        folder = write(state, 2)
        assert name in every_file(folder)
        DAMAGES[damage](folder / name)
        warnings = []
        found, manifest = newest_checkpoint(state, warnings.append)
        assert (found.name, manifest["step"]) == ("step-000000001", 1)
        (warning,) = warnings
        assert "damaged" in warning
        assert "step-000000002" in warning


@settings(max_examples=40)
@given(st.data())
def test_every_flipped_bit_is_found(tmp_path_factory, data):
    state = tmp_path_factory.mktemp("state")
    folder = write(state, 2)
    file = folder / data.draw(st.sampled_from(every_file(folder)))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    with pytest.raises(PidistillError, match="are damaged"):
        newest_checkpoint(state, lambda line: None)


@pytest.mark.parametrize(
    ("change", "signed"),
    [({"values": {}}, False), ({"more": 1}, True), ({"sha256": ["a.safetensors"]}, True)],
)
def test_an_edited_manifest_is_refused_and_one_of_another_form_though_signed(
    tmp_path, change, signed
):
    folder = write(tmp_path, 2)
    manifest = json.loads((folder / "manifest.json").read_text())
    digest = manifest.pop("manifest_sha256")
    manifest.update(change)
    if signed:
        digest = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "manifest_sha256": digest}))
    assert best_checkpoint(tmp_path) is None
    with pytest.raises(PidistillError, match="are damaged"):
        newest_checkpoint(tmp_path, lambda line: None)


def test_damaged_checkpoints_are_passed_over_one_by_one(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, keep=3)
    (tmp_path / "step-000000003/manifest.json").write_text("{}")
    (tmp_path / "step-000000002/a.safetensors").write_bytes(b"")
    warnings = []
    folder, _ = newest_checkpoint(tmp_path, warnings.append)
    assert folder.name == "step-000000001"
    assert ["step-000000003" in line for line in warnings] == [True, False]
    assert "a.safetensors does not match its checksum" in warnings[1]
    (tmp_path / "step-000000001/b.safetensors").unlink()
    with pytest.raises(PidistillError, match=r"are damaged; move .* away to start over"):
        newest_checkpoint(tmp_path, warnings.append)
