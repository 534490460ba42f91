"""Exact estimators: logistic and softmax regression with scikit-learn's interface, a certificate and inference."""

from likely.estimators.logistic import LogisticRegression
from likely.estimators.notices import CollinearityWarning, SeparationWarning
from likely.estimators.report import fit_report
from likely.estimators.selection import CrossValidation, PenaltyPath
from likely.estimators.softmax import SoftmaxRegression
from likely.estimators.storage import load
from likely.estimators.summary import Coefficient, Summary
from likely.estimators.units import in_units

__all__ = [
    "Coefficient",
    "CollinearityWarning",
    "CrossValidation",
    "LogisticRegression",
    "PenaltyPath",
    "SeparationWarning",
    "SoftmaxRegression",
    "Summary",
    "fit_report",
    "in_units",
    "load",
]
