"""Measurements of generated videos."""

from .clip import Clip, DependencyError, MetricError, read_clip
from .evaluation import Evaluation, Models, evaluate
from .ground_truth import COMPOSITE, GroundTruthScore, ShapeScore, per_time, score

__all__ = [
    "COMPOSITE",
    "Clip",
    "DependencyError",
    "Evaluation",
    "GroundTruthScore",
    "MetricError",
    "Models",
    "ShapeScore",
    "evaluate",
    "per_time",
    "read_clip",
    "score",
]
