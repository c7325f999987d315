"""ELECTRA (Clark et al. 2020): BERT's layers behind a word embedding of another width; no pooler."""

from torch import nn
from transformers import PreTrainedModel

from model_parallel.plan import Plan, whole
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.families.bert import ENCODER_PLAN


def _open(model: PreTrainedModel) -> None:
    """Let every model have the projection, also where the widths are one."""
    if not hasattr(model, "embeddings_project"):
        model.embeddings_project = nn.Identity()


FAMILY = Family(
    model_types=("electra",),
    layers="encoder.layer",
    attention="attention.self",
    by_token=("attention.output", ""),
    plan=Plan(rules=(*ENCODER_PLAN.rules, whole("embeddings_project")), divided=ENCODER_PLAN.divided),
    pooling="first",
    hidden_dropout=("hidden_dropout_prob",),
    attention_dropout=("attention_probs_dropout_prob",),
    query_and_value=("query", "value"),
    word_size=lambda config: int(config.embedding_size),
    language_head=("generator_predictions", "generator_lm_head"),
    open=_open,
)
