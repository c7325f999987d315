"""Metrics: functions of gold and predicted answers of a whole split, as fractions of 1. A task names those it reports.

What an answer is depends on the task's kind: a class index, a value, the tags of a sentence, a text. scikit-learn, scipy
and seqeval compute what they know.
"""

from collections.abc import Callable
from typing import Any

Metric = Callable[[Any, Any], float]
"""From gold and predicted answers, both of one length, to a number; 0 where it is not defined."""
