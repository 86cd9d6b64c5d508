"""Source code extracted from the package."""

import ast

import pytest

from pidistill.export import bundle as bundling
from pidistill.export.bundle import bundle, with_checksum
from pidistill.export.diffusers_folder import MODELS, PIPELINE
from pidistill.networks import NETWORKS

PARTS = [PIPELINE, f"{MODELS}:OneStepModel", f"{MODELS}:FlowMapModel"]
PARTS += [f"{network.__module__}:{network.__name__}" for network in NETWORKS.values()]


@pytest.mark.parametrize("part", PARTS)
def test_a_bundle_is_a_module_that_imports_nothing_of_this_package(part):
    tree = ast.parse(bundle(part, docstring="Some code."))
    assert ast.get_docstring(tree) == "Some code."
    for node in ast.walk(tree):
        names = [item.name for item in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.startswith("pidistill") for name in names)


def test_a_bundle_runs_by_itself_and_defines_what_was_wanted():
    source = bundle("pidistill.noise:Draws", "pidistill.networks.mlp:MLP", docstring="")
    names = {}
    exec(compile(source, "bundle", "exec"), names)  # noqa: S102
    assert names["Draws"](0, 0, 2).normal("z", (3,)).shape == (2, 3)
    assert names["MLP"]([1, 2, 2]).config["width"] == 384


def test_it_is_the_same_every_time_and_its_name_tells_it_from_others():
    first = bundle("pidistill.networks.mlp:MLP", docstring="")
    assert first == bundle("pidistill.networks.mlp:MLP", docstring="")
    other = bundle("pidistill.networks.mlp:MLP", docstring="Other.")
    assert with_checksum("mlp", first).startswith("mlp_")
    assert with_checksum("mlp", first) != with_checksum("mlp", other)
    assert with_checksum("mlp", first).isidentifier()
    assert "Draws" not in bundle("pidistill.noise:device_of", docstring="")  # only what is used


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ("pidistill.b:missing", "'missing'"),
        ("pidistill.a:same", "two definitions of 'same'"),
        ("pidistill.c:g", "'errors'"),
        ("pidistill.d:g", "f as h"),
    ],
)
def test_what_cannot_be_bundled_is_named(monkeypatch, wanted, problem):
    sources = {
        "pidistill": "",
        "pidistill.a": "from pidistill.b import f\ndef same(): return f()\n",
        "pidistill.b": "def same(): return 1\ndef f(): return same()\n",
        "pidistill.c": "from pidistill import errors\ndef g(): return errors\n",
        "pidistill.d": "from pidistill.b import f as h\ndef g(): return h()\n",
    }
    monkeypatch.setattr(bundling, "names_of", lambda name: bundling.parse_names(sources[name]))
    with pytest.raises(ValueError, match=problem):
        bundle(wanted, docstring="")
