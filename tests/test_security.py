"""Nothing that a file says is executed, and nothing is written where a file points to."""

import ast
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import pidistill
from pidistill import PidistillError, load_student, load_teacher
from pidistill.cli import main
from pidistill.export.export import export_student
from pidistill.files import read_json, write_json
from pidistill.model_folder import write_description
from pidistill.sample_files import read_samples
from pidistill.storage import read_tensors, write_tensors
from pidistill.teachers.formats.weights import read_torch
from pidistill.training.checkpoint import newest_checkpoint, write_checkpoint

SOURCES = sorted(Path(pidistill.__file__).parent.rglob("*.py"))

FORBIDDEN = """
    eval exec compile __import__ os.system os.popen pickle.load pickle.loads pickle.Unpickler
    marshal.load marshal.loads shelve.open joblib.load dill.load dill.loads torch.hub.load
    torch.jit.load torch.export.load runpy.run_path runpy.run_module yaml.load yaml.unsafe_load
    shutil.unpack_archive
"""
"""Calls that execute what they are given, or unpack it where it says."""

NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
"""Calls that are safe with one argument only."""

MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "tarfile"}
"""Modules that nothing may import."""


def faults_of(text):
    """The faults of a module, one per line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Call(func=func, keywords=keywords):
                name = ast.unparse(func)
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
                key, value = NEEDED.get(name, ("", None))
                wrong = name in FORBIDDEN.split() or name.endswith("extractall")
                wrong |= bool(key) and options.get(key) != str(value)
                wrong |= "trust_remote_code" in options or options.get("shell") == "True"
                found += [f"line {node.lineno}: {ast.unparse(node)}"] if wrong else []
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                taken = {alias.name for alias in names} | {getattr(node, "module", None)}
                found += [f"line {node.lineno}: import of {m}" for m in taken & MODULES]
    return found


def test_no_module_executes_what_it_reads():
    faults = {path: faults_of(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path: found for path, found in faults.items() if found} == {}


BAD_LINES = """
    eval(text)
    torch.load(path)
    torch.load(path, weights_only=False)
    np.load(path, allow_pickle=True)
    np.load(path)
    import pickle
    from pickle import loads
    archive.extractall(folder)
    Pipeline.from_pretrained(name, trust_remote_code=True)
    subprocess.run(text, shell=True)
"""


@pytest.mark.parametrize("line", BAD_LINES.strip().splitlines())
def test_the_scan_sees_what_it_must(line):
    assert len(faults_of(line.strip())) == 1


class Bomb:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture
def trace(tmp_path):
    return tmp_path / "executed"


@pytest.fixture(params=["pickle", "torch", "old torch", "numpy"])
def bomb(request, tmp_path, trace):
    """A file of every format that may hold a pickle, with a live one in it."""
    path = tmp_path / {"pickle": "a.pkl", "numpy": "a.npz"}.get(request.param, "a.pt")
    match request.param:
        case "pickle":
            path.write_bytes(pickle.dumps(Bomb(trace)))
        case "torch":
            torch.save({"weight": torch.ones(1), "bomb": Bomb(trace)}, path)
        case "old torch":
            torch.save({"bomb": Bomb(trace)}, path, _use_new_zipfile_serialization=False)
        case "numpy":
            np.savez(path, samples=np.array([Bomb(trace)] * 4, dtype=object))
    return path


def test_the_bomb_is_live(trace):
    pickle.loads(pickle.dumps(Bomb(trace)))  # noqa: S301
    assert trace.is_dir()


@pytest.mark.parametrize(
    "read",
    [
        read_torch,
        read_tensors,
        read_json,
        read_samples,
        lambda path: load_teacher(str(path)),
        lambda path: load_teacher(f"edm:{path}"),
        lambda path: load_teacher(f"score-sde:{path}"),
    ],
)
def test_no_reader_executes_a_pickle(trace, read, bomb):
    with pytest.raises(PidistillError) as caught:
        read(bomb)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.fixture
def run(tmp_path, mlp_student):
    """A run folder with a checkpoint."""
    folder = tmp_path / "run"
    folder.mkdir()
    weights = dict(mlp_student.state_dict())
    write_description(folder, mlp_student, 0)
    write_tensors(folder / "student.safetensors", weights)
    write_checkpoint(folder / "state", 3, {"student.safetensors": weights}, {}, keep=1)
    return folder


def test_no_file_of_a_run_is_unpickled(tmp_path, trace, run, bomb):
    for file in (*run.glob("state/*/*"), *(f for f in run.iterdir() if f.is_file())):
        before = file.read_bytes()
        file.write_bytes(bomb.read_bytes())
        for verb in (["inspect"], ["sample", "--out", str(tmp_path / "x.npz")]):
            main([verb[0], str(run), *verb[1:]])
        if file.parent != run:
            with pytest.raises(PidistillError):
                newest_checkpoint(run / "state", lambda line: None)
        assert not trace.exists()
        file.write_bytes(before)
    load_student(run)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "a/../../secret"])
def test_a_manifest_cannot_name_files_elsewhere(tmp_path, run, name):
    """They are looked for by their last part, in the checkpoint's own folder."""
    (run / "state/secret").write_text("secret")
    folder = run / "state/step-000000003"
    manifest = read_json(folder / "manifest.json")
    manifest["sha256"][name] = manifest["sha256"].popitem()[1]
    write_json(folder / "manifest.json", manifest)
    with pytest.raises(PidistillError, match="are damaged"):
        newest_checkpoint(run / "state", lambda line: None)


def test_a_run_that_comes_with_links_is_not_exported_through_them(tmp_path, run):
    """What is copied into an export may be published."""
    secret = tmp_path / "secret"
    secret.write_text("a key")
    (run / "metrics.jsonl").symlink_to(secret)
    with pytest.raises(PidistillError, match=r"metrics\.jsonl is a link to"):
        export_student(run, tmp_path / "copy", to="run")
    assert not (tmp_path / "copy").exists()


def test_an_archive_with_names_that_climb_writes_nothing(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    for name in ("a.pt", "a.npz"):
        with zipfile.ZipFile(inner / name, "w") as archive:
            archive.writestr("../escaped", "x")
            archive.writestr("archive/data.pkl", pickle.dumps({}))
            archive.writestr("../../samples.npy", b"")
    before = sorted(tmp_path.rglob("*"))
    for read in (read_torch, read_samples):
        for file in sorted(inner.iterdir()):
            with pytest.raises(PidistillError):
                read(file)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["os.system", "../../evil", "pidistill.cli:main", "__import__"])
def test_a_description_cannot_name_other_code(run, name):
    content = read_json(run / "network.json")
    for change in (
        {"kind": name},
        {"network": {**content["network"], "name": name}},
        {"precondition": {**content["precondition"], "name": name}},
    ):
        write_json(run / "network.json", {**content, **change})
        with pytest.raises(PidistillError, match="unknown"):
            load_student(run)


@pytest.mark.parametrize("key", ["../../escaped", "/escaped", "..", "a\\..\\b"])
def test_names_of_tensors_are_not_paths(tmp_path, run, key):
    weights = read_tensors(run / "student.safetensors")
    weights[key] = torch.ones(1)
    write_tensors(run / "student.safetensors", weights)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PidistillError, match="unexpected weight"):
        load_student(run)
    assert sorted(tmp_path.rglob("*")) == before
