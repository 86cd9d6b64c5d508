"""pidistill: diffusion models that sample in one network evaluation.

The public names are loaded on first use, so that importing the package stays cheap.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ConsistencyStudent": "pidistill.consistency_student",
    "Denoiser": "pidistill.denoiser",
    "EulerStudent": "pidistill.euler_student",
    "PidistillError": "pidistill.errors",
    "Solution": "pidistill.ode",
    "Student": "pidistill.student",
    "TrajectoryStudent": "pidistill.student",
    "initial_noise": "pidistill.data.noise",
    "load_student": "pidistill.student",
    "load_teacher": "pidistill.teachers",
    "solve": "pidistill.ode",
}

__all__ = ["methods", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name == "methods":
        return importlib.import_module("pidistill.methods")
    raise AttributeError(f"module 'pidistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
