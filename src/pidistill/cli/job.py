"""A run of a comparison in a process of its own: `python -m pidistill.cli.job DIR`.

It is `pidistill distill --out DIR --resume`, and stops with its state saved when its standard input
ends: when the process that started it asks for it, or is gone, however that came. The exit code
tells apart what the others need not mind, a run that another process trains, and what would end
them, too: a full disk, a vanished drive.
"""

import os
import signal
import sys
import threading


def main() -> int:
    """Train the run in the folder that is named, and return the exit code."""
    from pidistill import cli

    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    return cli.main(["distill", "--out", sys.argv[1], "--resume"])


def _stop_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
