"""What is drawn in a terminal is where it should be and fits."""

import io

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pidistill.watching.curves import panels
from pidistill.watching.status import RunStatus
from pidistill.watching.terminal import AXIS, half_blocks, plot, view


def run_of(folder, log, preview=None, state="training"):
    facts = {"step": 5, "max_train_steps": 10, "loss": 0.5, "recent_images_per_second": 1234.5}
    return RunStatus(folder, state, "", facts, log, preview, None)


def a_log(names=("loss", "residual", "learning_rate"), num=50):
    return [{"step": i, **dict.fromkeys(names, 1 / (i + 1))} for i in range(num)]


def dots(lines):
    """Which dots of the plot are set: shape (4 rows, 2 columns) a cell."""
    cells = [[ord(char) - 0x2800 for char in line.plain[AXIS + 1 :]] for line in lines[:-1]]
    bits = np.array([[cell if cell > 0 else 0 for cell in row] for row in cells])
    order = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]]
    parts = [[(bits & bit) > 0 for bit in row] for row in order]
    return np.array(parts).transpose(2, 0, 3, 1).reshape(4 * len(cells), -1)


def test_a_falling_line_is_a_diagonal():
    log = [{"step": i, "loss": 200.0 - i} for i in range(100)]
    (panel,) = panels([run_of("run", log)])
    curve = panel.curves[0]
    lines = plot(panel, [(curve, curve.values, "red")], width=AXIS + 1 + 20, height=10)
    np.testing.assert_array_equal(dots(lines), np.eye(40, dtype=bool))
    assert lines[0].plain.startswith("     200 │")
    assert lines[9].plain.startswith("     101 │")
    assert lines[10].plain.endswith("step 99")


def test_a_logarithmic_axis_makes_an_exponential_straight():
    log = [{"step": i, "loss": 10.0 ** -(i / 10)} for i in range(40)]
    (panel,) = panels([run_of("run", log)])
    assert panel.log
    curve = panel.curves[0]
    lines = plot(panel, [(curve, curve.values, "red")], width=AXIS + 1 + 20, height=10)
    np.testing.assert_array_equal(dots(lines), np.eye(40, dtype=bool))


def test_a_constant_and_a_single_step_are_drawn():
    log = [{"step": 3, "loss": 2.0}, {"step": 3, "loss": 2.0}]
    (panel,) = panels([run_of("run", log)])
    curve = panel.curves[0]
    assert dots(plot(panel, [(curve, curve.values, "")], 30, 4)).sum() == 1


def test_a_picture_keeps_its_colours(tmp_path):
    tiles = np.zeros((20, 200, 3), np.uint8)  # ten samples of 20 x 20
    tiles[:10, :, 0], tiles[10:, :, 2] = 255, 255
    Image.fromarray(tiles).save(tmp_path / "x.png")
    lines = half_blocks(tmp_path / "x.png", width=200, height=10)
    assert len(lines) == 10
    assert {line.plain for line in lines} == {"▀" * 200}
    style = lines[0].spans[0].style
    assert style.color.name == style.bgcolor.name == "#ff0000"
    assert lines[-1].spans[-1].style.color.name == "#0000ff"


@pytest.mark.parametrize("width", [10, 60, 119, 500])
@pytest.mark.parametrize("height", [2, 5, 12, 50])
def test_a_picture_fits_and_shows_whole_samples(tmp_path, width, height):
    Image.fromarray(np.zeros((200, 500, 3), np.uint8)).save(tmp_path / "x.png")
    lines = half_blocks(tmp_path / "x.png", width=width, height=height)
    assert 1 <= len(lines) <= height
    assert max(len(line.plain) for line in lines) <= width


def test_a_damaged_picture_is_no_picture(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n")
    assert half_blocks(tmp_path / "x.png", 80, 20) == []
    assert half_blocks(tmp_path / "missing.png", 80, 20) == []


def drawn(runs, *, width, height=None, color="truecolor"):
    stream = io.StringIO()
    console = Console(
        file=stream, width=width, height=height, force_terminal=color is not None,
        color_system=color,
    )  # fmt: skip
    console.print(view(runs, console, height))
    return stream.getvalue()


@pytest.mark.parametrize("num_runs", [1, 2, 4])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60), (60, 30)])
def test_it_fits_the_screen(tmp_path, num_runs, width, height):
    Image.fromarray(np.zeros((200, 500, 3), np.uint8)).save(tmp_path / "x.png")
    runs = [run_of(f"run-{i}", a_log(), tmp_path / "x.png") for i in range(num_runs)]
    text = drawn(runs, width=width, height=height, color=None)
    assert len(text.splitlines()) <= height
    assert max(map(len, text.splitlines())) <= width
    colored = drawn(runs, width=width, height=height)
    assert len(colored.splitlines()) <= height
    for run in runs:
        assert run.folder in colored


def test_without_colours_the_pictures_are_named(tmp_path):
    Image.fromarray(np.zeros((200, 500, 3), np.uint8)).save(tmp_path / "x.png")
    text = drawn([run_of("run", a_log(), tmp_path / "x.png")], width=200, color=None)
    assert f"samples: {tmp_path / 'x.png'}" in text
    assert "▀" not in text
    assert "\x1b" not in text


def test_nothing_yet(tmp_path):
    run = RunStatus(tmp_path, "waiting", "nothing is there yet", {}, [], None, None)
    assert "nothing is there yet" in drawn([run], width=80, height=24)


def test_the_table_says_how_far_the_run_is():
    text = drawn([run_of("run", a_log())], width=100, color=None)
    assert "5 / 10 (50%)" in text
    assert "1,23" in text
    assert "0.5" in text
