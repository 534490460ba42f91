"""The examination of a distillation loss: does it compute what its author means?"""

from likely.doctor.examine import CHECKS, examine, load
from likely.doctor.findings import Examination, Finding

__all__ = ["CHECKS", "Examination", "Finding", "examine", "load"]
