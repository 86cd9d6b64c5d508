"""Presets that build on others."""

import pytest

from pidistill import PidistillError, presets
from pidistill.presets import preset_names, preset_summary, read_preset


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of presets in place of the package's."""
    monkeypatch.setattr(presets, "_FOLDER", tmp_path)
    return tmp_path


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)


def test_a_chain_of_bases_is_merged_table_by_table(folder):
    write(
        folder,
        a='# A.\nseed = 1\nbatch_size = 2\n[method]\nname = "pid"\nstep = 0.1\ndraw = "log"\n',
        b='base = "a"\nseed = 3\n[method]\nstep = 0.2\n',
        c='base = "b"\nseed = 4\n',
        d='base = "b"\n[method]\nname = "boot"\n',
    )
    method = {"name": "pid", "step": 0.2, "draw": "log"}
    assert read_preset("c") == {"seed": 4, "batch_size": 2, "method": method}
    assert read_preset("d") == {"seed": 3, "batch_size": 2, "method": {"name": "boot"}}
    assert preset_summary("a") == "A."


def test_a_circle_is_refused(folder):
    write(folder, a='base = "b"', b='base = "c"', c='base = "b"')
    with pytest.raises(PidistillError, match="b -> c -> b"):
        read_preset("a")


def test_an_unknown_base_is_refused(folder):
    write(folder, a='base = "b"')
    with pytest.raises(PidistillError, match="unknown preset 'b'"):
        read_preset("a")


@pytest.mark.parametrize(
    ("name", "base", "changed"),
    [
        ("digits-full", "fast", {"teacher", "max_train_steps"}),
        ("cifar10-published", "published", {"max_micro_batch", "method"}),
        (
            "imagenet64-published",
            "cifar10-published",
            {"batch_size", "max_train_steps", "learning_rate", "mixed_precision"}
            | {"max_micro_batch"},
        ),
        (
            "glyphs-teacher-large",
            "image-teacher",
            {"data", "batch_size", "max_train_steps", "learning_rate", "lr_warmup_steps"}
            | {"network"},
        ),
    ],
)
def test_what_our_presets_change(name, base, changed):
    own, below = read_preset(name), read_preset(base)
    ours = {"checkpointing_steps", "preview_steps"}  # how often things are written
    assert {key for key in own if own[key] != below.get(key)} - ours == changed


def test_every_preset_says_what_it_is_for():
    for name in preset_names():
        assert 10 < len(preset_summary(name)) <= 90
