"""Results of many generated videos: intervals, paired differences, verdicts on claims, plots, and one HTML page."""

from .claims import Verdict, judge_claims
from .rows import COLUMNS, Results, ResultsError
from .summary import markdown, summarise

__all__ = ["COLUMNS", "Results", "ResultsError", "Verdict", "judge_claims", "markdown", "summarise"]
