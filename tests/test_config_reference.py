"""The page on the keys of run configs says what the models say."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_is_written_from_the_models():
    script = runpy.run_path(str(ROOT / ".ci" / "config_reference.py"))
    page = (ROOT / "docs" / "config-reference.md").read_text(encoding="utf-8")
    assert page == script["page"](), "run python .ci/config_reference.py"
