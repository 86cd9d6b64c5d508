"""A hash of the function that a teacher computes.

Unlike a spec such as `native:DIR`, it identifies the weights, and does not depend on where they
were read from.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pidistill.denoiser import Denoiser
from pidistill.files import sha256_of
from pidistill.storage import weights_sha256

NOT_SETTINGS = ("source", "training", "class_names")
"""Attributes of a denoiser that do not change what it computes."""


def teacher_fingerprint(teacher: Denoiser) -> str:
    """A hash of a teacher's weights, modules and settings.

    Guidance, preconditioning and decoder are included.
    """
    parts = []
    for name, part in teacher.named_modules():
        values = vars(part) if isinstance(part, Denoiser) else {}
        settings = {
            key: _plain(value)
            for key, value in values.items()
            if key[0] != "_" and key not in NOT_SETTINGS
        }
        config = _plain(getattr(part, "config", None))
        parts.append([name, type(part).__qualname__, settings, config])
    text = json.dumps([parts, teacher.evaluations_per_call], sort_keys=True)
    return sha256_of([text, weights_sha256(teacher)])


def _plain(value: Any) -> Any:
    """A setting or a network's config as JSON values; other objects become their type name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, _plain(dataclasses.asdict(value))]
    if isinstance(value, Mapping):  # libraries store paths and versions under underscored keys
        return {str(key): _plain(item) for key, item in value.items() if str(key)[:1] != "_"}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return value.tolist()
    return value if isinstance(value, bool | int | float | str | None) else type(value).__qualname__
