"""pidistill: diffusion models that sample in one network evaluation.

Public names are loaded on first use, which keeps importing the package cheap.
"""

import importlib
from typing import Any

__version__ = "0.2.0.dev0"

_PUBLIC = {
    "pidistill.denoiser": ["Denoiser", "as_denoiser"],
    "pidistill.errors": ["PidistillError"],
    "pidistill.evaluation": ["evaluate"],
    "pidistill.library": ["distill"],
    "pidistill.methods.base": ["Batch", "Losses", "Method", "Part", "Update"],
    "pidistill.methods.boot": ["BOOT", "BOOTSettings"],
    "pidistill.methods.consistency": ["Consistency", "ConsistencySettings"],
    "pidistill.methods.denoising": ["Denoising", "DenoisingSettings"],
    "pidistill.methods.knowledge": ["Knowledge", "KnowledgeSettings"],
    "pidistill.methods.pid": ["PID", "PIDSettings"],
    "pidistill.methods.progressive": ["Progressive", "ProgressiveSettings"],
    "pidistill.methods.settings": ["MethodSettings", "OptimizerSettings"],
    "pidistill.model_folder": ["load_student"],
    "pidistill.noise": ["initial_noise"],
    "pidistill.ode": ["Solution", "solve"],
    "pidistill.students": [
        "ConsistencyStudent",
        "EulerStudent",
        "FlowMapStudent",
        "Student",
        "TrajectoryStudent",
    ],
    "pidistill.teachers": ["load_teacher"],
    "pidistill.training.config": ["RunConfig"],
    "pidistill.training.trainer": ["Trainer"],
}
"""Public names by the module that defines them."""

_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", "methods", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    if name == "methods":
        return importlib.import_module("pidistill.methods")
    raise AttributeError(f"module 'pidistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
