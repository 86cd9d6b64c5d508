"""A training step on an accelerator: no step waits for it, and no tensor is on the wrong device.

There is no accelerator here. Fake tensors have its device and no values: an operation that needs a
value of theirs on the host, or that mixes devices, fails; so does a copy from the host.
"""

import json
import subprocess
import sys
from pathlib import Path

from method_runs import METHODS

SCRIPT = Path(__file__).parents[1] / "fake_accelerator.py"


def test_a_step_of_no_method_waits_or_mixes_devices():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() > METHODS.keys()
    assert {case: error for case, error in found.items() if error} == {}
