"""The page stands alone, is refreshed only while there is something new, and hides nothing."""

import re

import numpy as np
import pytest
from PIL import Image

from pidistill.watching.page import INK, LINE, RUNS, SOFT, page_of
from pidistill.watching.status import RunStatus


@pytest.fixture
def run(tmp_path):
    Image.fromarray(np.zeros((20, 200, 3), np.uint8)).save(tmp_path / "step-000000500.png")

    def make(state="training", name="run", **more):
        log = [{"step": i, "loss": 1 / (i + 1), "residual": 2.0 - i % 3} for i in range(50)]
        facts = {"step": 49, "max_train_steps": 100, "loss": 0.02, **more}
        preview = tmp_path / "step-000000500.png"
        return RunStatus(tmp_path / name, state, "", facts, log, preview, None)

    return make


def test_it_needs_no_network(run):
    page = page_of([run()])
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "<script" not in page


@pytest.mark.parametrize(
    ("states", "refreshed"),
    [
        (["training"], True),
        (["waiting"], True),
        (["finished"], False),
        (["died", "failed", "stopped"], False),
        (["finished", "preparing"], True),
    ],
)
def test_it_is_refreshed_while_a_run_goes_on(run, states, refreshed):
    page = page_of([run(state, f"run-{i}") for i, state in enumerate(states)])
    assert ('http-equiv="refresh"' in page) == refreshed


def test_colours_follow_the_style_sheet(run):
    page = page_of([run(name="a"), run(name="b")])
    for stand_in in (INK, SOFT, LINE, *RUNS):
        assert stand_in not in page
    for name in ("ink", "soft", "line", "run0", "run1"):
        assert re.search(rf"(?:fill|stroke): var\(--{name}\)", page), name
        assert page.count(f"--{name}:") == 2  # for light and for dark


def test_everything_is_on_it(run):
    page = page_of([run(name="first"), run("died", name="second")])
    assert page.count("<svg") == 2
    assert page.count("data:image/png;base64,") == 2
    assert "step 500" in page
    assert "49 / 100 (49%)" in page
    assert '<td class="died">died</td>' in page
    assert "$" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_names_are_escaped(run):
    page = page_of([run(name="<b>&")])
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp;" in page


def test_nothing_yet(tmp_path):
    page = page_of([RunStatus(tmp_path, "waiting", "nothing is there yet", {}, [], None, None)])
    assert "nothing is there yet" in page
    assert "<svg" not in page
