"""What machine a number was measured on: every result carries this."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import pidistill


def machine() -> dict[str, str]:
    """Processor, cores, accelerator, versions and commit, for people to read."""
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pidistill": pidistill.__version__,
    }
    commit = _commit()
    if commit:
        facts["commit"] = commit
    if torch.cuda.is_available():
        facts["accelerator"] = torch.cuda.get_device_name()
    return facts


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, if it does."""
    root = Path(pidistill.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ("git", "-C", str(root))
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
    try:
        commit = subprocess.run((*git, "rev-parse", "--short", "HEAD"), **options).stdout.strip()
        changed = subprocess.run((*git, "status", "--porcelain", "-uno"), **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or it does not trust the folder
        return None
    return f"{commit} and changes" if changed else commit


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
