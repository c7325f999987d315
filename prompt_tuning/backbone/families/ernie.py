"""ERNIE 1 to 3 (Sun et al. 2019 and later): BERT, from the second on with an embedding of the kind of pretraining task."""

from dataclasses import replace

from model_parallel.plan import Plan, whole
from prompt_tuning.backbone.families import bert

FAMILY = replace(
    bert.FAMILY,
    model_types=("ernie",),
    plan=Plan(
        rules=(*bert.ENCODER_PLAN.rules, whole("embeddings.task_type_embeddings")), divided=bert.ENCODER_PLAN.divided
    ),
)
