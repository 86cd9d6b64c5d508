"""Evaluation of models and samples: draw, measure in one streaming pass, report.

`evaluate` is the only entry point. This package does not depend on any training method.
"""

from pidistill.evaluation.protocol import evaluate

__all__ = ["evaluate"]
