"""Evaluation: estimates with standard errors, calibration, paired comparisons, and a report to look at."""

from likely.evaluation.calibration import Reliability, calibration_error, reliability
from likely.evaluation.estimate import Evaluation, evaluate, paired_difference
from likely.evaluation.report import Report, Surprise, evaluation_report

__all__ = [
    "Evaluation",
    "Reliability",
    "Report",
    "Surprise",
    "calibration_error",
    "evaluate",
    "evaluation_report",
    "paired_difference",
    "reliability",
]
