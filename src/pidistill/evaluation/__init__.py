"""Measuring models and samples: draw, measure in one streaming pass, report.

`evaluate` is the one path from a model to its numbers; this room knows no training method.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pidistill.evaluation.protocol import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> Any:
    if name == "evaluate":
        from pidistill.evaluation.protocol import evaluate

        return evaluate
    raise AttributeError(f"module 'pidistill.evaluation' has no attribute {name!r}")
