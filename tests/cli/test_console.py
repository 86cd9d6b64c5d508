from rich.console import Console

from pidistill.cli.console import Out


def test_a_wide_table_loses_nothing_on_a_narrow_terminal(capsys):
    out = Out(as_json=False)
    out.people = Console(width=80, highlight=False)
    columns = ["", "steps", "images", "teacher evals", "student evals", "train s", "ms/step", "MB"]
    numbers = ["2,500", "320,000", "320,000", "640,000", "135", "50.5", "58"]
    out.table("Runs", columns, [["consistency", *numbers], ["PID, averages warmed up", *numbers]])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert ["consistency", *numbers] in [line.split() for line in lines]
    assert "…" not in "".join(lines)
    assert all(any(word in line for line in lines) for word in ["averages", "warmed", "up"])
