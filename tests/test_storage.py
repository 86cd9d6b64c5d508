"""Files that are whole or absent, and weights that fit or are named."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from pidistill import PidistillError
from pidistill.files import read_json, write_json, write_text
from pidistill.storage import load_weights, read_tensors, write_tensors

WRITERS = {
    "text": lambda path, new: write_text(path, "new" if new else "old"),
    "json": lambda path, new: write_json(path, {"new": new}),
    "tensors": lambda path, new: write_tensors(path, {"new": torch.tensor(new)}),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def fail(*args, **kwargs):
    raise KeyError


@every_writer
@pytest.mark.parametrize("where", ["replace", "fsync", "mkdir"])
def test_a_write_replaces_the_old_file_or_leaves_it(tmp_path, monkeypatch, write, where):
    path = tmp_path / "file"
    write(path, False)
    before = path.read_bytes()
    with monkeypatch.context() as broken:
        broken.setattr(os, where, fail)
        with pytest.raises(KeyError):
            write(path, True)
    assert path.read_bytes() == before
    write(str(path), True)
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, width=32),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values))
def test_json_comes_back_as_it_was(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "file.json"
    try:
        write_json(path, content)
    except ValueError:  # infinity is not JSON
        assert "inf" in str(content)
        assert not path.exists()
    else:
        assert read_json(path) == content


def test_a_missing_file_is_named(tmp_path):
    for read in (read_json, read_tensors):
        with pytest.raises(PidistillError, match="nowhere does not exist"):
            read(tmp_path / "nowhere")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_tensors_come_back_as_they_were(tmp_path, dtype):
    tensors = {
        "a scalar": torch.tensor(3, dtype=dtype),
        "transposed": torch.arange(6).reshape(2, 3).to(dtype).T,
        "empty": torch.zeros(0, 4, dtype=dtype),
    }
    write_tensors(tmp_path / "file", tensors)
    again = read_tensors(tmp_path / "file")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert again[name].dtype == dtype
        assert torch.equal(again[name], tensor)
    assert load_file(tmp_path / "file").keys() == tensors.keys()  # plain safetensors


@given(st.integers(0, 200))
def test_a_cut_tensor_file_is_refused(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("tensors") / "file"
    write_tensors(path, {"a": torch.arange(20.0)})
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(PidistillError, match="file"):
        read_tensors(path)


def weights():
    return {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}


def test_weights_that_fit_are_loaded_in_the_modules_dtype():
    module = torch.nn.Linear(3, 2)
    load_weights(module, {k: v.half() for k, v in weights().items()}, "the file")
    assert torch.equal(module.weight, torch.ones(2, 3))
    assert module.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.pop("bias"), "the file lacks .*'bias'"),
        (lambda w: w.clear(), "the file lacks .*'bias' and 1 more"),
        (lambda w: w.update(extra=torch.ones(1)), "the file .*unexpected .*'extra'"),
        (lambda w: w.update(weight=torch.ones(3, 2)), r"the file: .*'weight' .*\(3, 2\).*\(2, 3\)"),
        (lambda w: w["bias"].fill_(torch.nan), "the file: .*'bias' is not finite"),
        (lambda w: w["weight"][1, 1].fill_(torch.inf), "the file: .*'weight' is not finite"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(change, named):
    module = torch.nn.Linear(3, 2)
    before = module.weight.clone()
    given = weights()
    change(given)
    with pytest.raises(PidistillError, match=named):
        load_weights(module, given, "the file")
    assert torch.equal(module.weight, before)
