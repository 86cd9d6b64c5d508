"""Measuring models and samples: draw, measure in one streaming pass, report.

`evaluate` is the one path from a model to its numbers; this room knows no training method.
"""

from pidistill.evaluation.protocol import evaluate

__all__ = ["evaluate"]
