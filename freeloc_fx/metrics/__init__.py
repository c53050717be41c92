"""Measurements of generated videos."""

from .ground_truth import GroundTruthScore, ShapeScore, per_time, score

__all__ = ["GroundTruthScore", "ShapeScore", "per_time", "score"]
