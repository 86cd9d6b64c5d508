"""`python -m pidistill`, the same as the command `pidistill`."""

import sys

from pidistill.cli import main

sys.exit(main())
