"""RoBERTa (Liu et al. 2019) and XLM-R (Conneau et al. 2020): positions from padding_idx + 1."""

from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.families.bert import ENCODER_PLAN

FAMILY = Family(
    model_types=("roberta", "xlm-roberta"),
    embeddings="embeddings",
    layers="encoder.layer",
    attention="attention.self",
    by_token=("attention.output", ""),
    plan=ENCODER_PLAN,
    pooling="pooler",
    hidden_dropout=("hidden_dropout_prob",),
    attention_dropout=("attention_probs_dropout_prob",),
    query_and_value=("query", "value"),
    positions=lambda index, config: index + config.pad_token_id + 1,
    table_offset=lambda config: config.pad_token_id + 1,
)
