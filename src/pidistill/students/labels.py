"""Labels of samples: by number or name, and in turn."""

from typing import Protocol

import torch
from torch import Tensor

from pidistill.errors import PidistillError


class Labelled(Protocol):
    """What labels need of a model; all denoisers and students have it."""

    num_classes: int
    source: str
    class_names: tuple[str, ...]


def labels_for(
    model: Labelled, num: int, label: int | Tensor | None = None, first: int = 0
) -> Tensor | None:
    """Labels (num,) of the samples `first ..`; by default they cycle through the classes.

    Returns None for an unconditional model. Raises `PidistillError` if a label is out of range.
    """
    if label is not None and model.num_classes == 0:
        raise PidistillError(f"label is {label}, but {model.source} is not class-conditional")
    if model.num_classes == 0:
        return None
    if label is None:
        return torch.arange(first, first + num) % model.num_classes
    if isinstance(label, int) and not -1 <= label < model.num_classes:
        raise PidistillError(f"label is {label}; expected {_label_range(model)}")
    labels = torch.as_tensor(label, dtype=torch.int64).cpu()
    if labels.shape not in ((), (num,)):
        raise PidistillError(
            f"label has shape {tuple(labels.shape)}; expected one label, or {num} labels"
        )
    labels = labels.expand(num)
    if (labels < -1).any() or (labels >= model.num_classes).any():
        raise PidistillError(f"label is {label}; expected {_label_range(model)}")
    return labels


def label_of(model: Labelled, text: str) -> int:
    """The label that `text` names: a number, or the name of a class.

    Raises `PidistillError` if it is neither.
    """
    if text in model.class_names:
        return model.class_names.index(text)
    try:
        label = int(text)
    except ValueError as error:
        names = ", ".join(model.class_names[:20])
        known = f", or one of {names}" if names else ""
        raise PidistillError(f"label is {text!r}; expected {_label_range(model)}{known}") from error
    labels_for(model, 1, label)
    return label


def _label_range(model: Labelled) -> str:
    return f"0 .. {model.num_classes - 1}, or -1 for no label"
