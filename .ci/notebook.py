"""Runs the code cells of a notebook in order, in this process.

    python .ci/notebook.py NOTEBOOK.ipynb [--write]

With `--write`, stores what the cells print and show; otherwise the file is left as it is. A cell
shows the value of its last line, if it has one; pictures are those of Pillow.
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def run(source: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one cell and return its outputs."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)  # noqa: S102
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        print(text, end="")
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(True)})
    if value is not None:
        data: dict[str, Any] = {"text/plain": [repr(value).partition(" at 0x")[0]]}
        if hasattr(value, "quantize"):  # few colours make a small file
            stream = io.BytesIO()
            value.quantize(32).save(stream, format="png", optimize=True)
            data["image/png"] = base64.b64encode(stream.getvalue()).decode()
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return outputs


def main() -> None:
    path = Path(sys.argv[1])
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = run("".join(cell["source"]), names)
    if "--write" in sys.argv:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
