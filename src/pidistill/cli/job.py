"""A run of a comparison in a process of its own: `python -m pidistill.cli.job DIR`.

It is `pidistill distill --out DIR --resume`, and stops with its state saved when its standard input
ends: when the process that started it asks for it, or is gone, however that came. Where another
process trains in the folder, the exit code says so.
"""

import os
import signal
import sys
import threading
from pathlib import Path


def main() -> int:
    """Train the run in the folder that is named, and return the exit code."""
    from pidistill import cli
    from pidistill.comparison.jobs import HELD
    from pidistill.training.lock import is_held

    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    code = cli.main(["distill", "--out", sys.argv[1], "--resume"])
    return HELD if code and is_held(Path(sys.argv[1])) else code


def _stop_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
