"""Measurements of generated videos."""

from .clip import Clip, DependencyError, MetricError, read_clip
from .evaluation import Evaluation, Models, evaluate
from .ground_truth import GroundTruthScore, ShapeScore, per_time, score

__all__ = [
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
