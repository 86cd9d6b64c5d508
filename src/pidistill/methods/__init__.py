"""Training methods: one loss a file, on the same teacher, student and trainer.

A method is a class with

- `Settings`: a pydantic model of its settings, the table `[method]` of a run config;
- `needs`: `"noise"`; `"images"` where it trains on data; `"pairs"` where the teacher first makes
  samples to train on;
- `build(settings, teacher, data, network)`: makes the student and the method that trains it;
- `student`: what it trains;
- `loss(batch)`: per-sample losses, see `Losses`;
- `preview(num)`: samples to look at during training;
- where it keeps more than the student: `prepare`, `start_phase`, `after_step` and its state.
"""

import importlib
from typing import Any

NAMES = ("pid", "consistency", "progressive", "boot", "knowledge")
"""The distillation methods, as `pidistill distill --method` knows them."""

METHODS = {
    "pid": "pidistill.methods.pid:PID",
    "consistency": "pidistill.methods.consistency:Consistency",
    "progressive": "pidistill.methods.progressive:Progressive",
    "boot": "pidistill.methods.boot:BOOT",
    "knowledge": "pidistill.methods.knowledge:Knowledge",
    "denoising": "pidistill.methods.denoising:Denoising",
}


def method_class(name: str) -> Any:
    """The class registered as `name`, a key of `METHODS`."""
    module_name, class_name = METHODS[name].split(":")
    return getattr(importlib.import_module(module_name), class_name)
