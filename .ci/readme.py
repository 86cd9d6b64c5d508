"""Prints the documented commands that carry a name, so that CI runs exactly what people read.

    python3 .ci/readme.py NAME

prints the fenced block that follows the comment `<!-- ci: NAME -->` in one of the `PAGES`.
"""

import re
import sys
from pathlib import Path

root = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "docs/your-own-data.md")
texts = [(root / name).read_text(encoding="utf-8") for name in PAGES]
blocks = dict(re.findall(r"<!-- ci: (\w+) -->\n```bash\n(.*?)```", "".join(texts), flags=re.DOTALL))
name = sys.argv[1]
if name not in blocks:
    sys.exit(f"{', '.join(PAGES)} have no block {name!r}; they have {', '.join(blocks)}")
print(blocks[name], end="")
