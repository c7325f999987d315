"""Which of several texts fits: one output for each, compared within the example.

The head's bias shifts all choices alike, so its true gradient is zero and it is not trained.
"""

from dataclasses import replace

from prompt_tuning.kinds import classification

KIND = replace(classification.KIND, num_outputs=lambda num_labels: 1, trains_bias=False)
