"""The page on pidistill as a library shows code that CI runs."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_piece_is_from_the_notebook_or_an_example():
    notebook = json.loads((ROOT / "examples" / "library.ipynb").read_text("utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code += [file.read_text("utf-8") for file in (ROOT / "examples").glob("*.py")]
    page = (ROOT / "docs" / "library.md").read_text("utf-8")
    pieces = re.findall(r"```python\n(.*?)\n```", page, flags=re.DOTALL)
    assert len(pieces) > 5
    assert [piece for piece in pieces if not any(piece in cell for cell in code)] == []
