"""pidistill: diffusion models that sample in one network evaluation.

The public names are loaded on first use, so that importing the package stays cheap.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ConsistencyStudent": "pidistill.students.consistency",
    "Denoiser": "pidistill.denoiser",
    "EulerStudent": "pidistill.students.euler",
    "PidistillError": "pidistill.errors",
    "Solution": "pidistill.ode",
    "Student": "pidistill.students.base",
    "TrajectoryStudent": "pidistill.students.trajectory",
    "as_denoiser": "pidistill.denoiser",
    "initial_noise": "pidistill.noise",
    "load_student": "pidistill.model_folder",
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
