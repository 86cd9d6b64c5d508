"""Prints the README's commands that carry a name, so that CI runs exactly what people read.

    python3 .ci/readme.py NAME

prints the fenced block that follows the comment `<!-- ci: NAME -->`.
"""

import re
import sys
from pathlib import Path

readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
blocks = dict(re.findall(r"<!-- ci: (\w+) -->\n```bash\n(.*?)```", readme, flags=re.DOTALL))
name = sys.argv[1]
if name not in blocks:
    sys.exit(f"the README has no block {name!r}; it has {', '.join(blocks)}")
print(blocks[name], end="")
