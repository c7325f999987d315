"""RoBERTa (Liu et al. 2019) and what has its layers and positions, which count from padding_idx + 1.

XLM-R (Conneau et al. 2020), XLM-R XL (Goyal et al. 2021; norms in front of each block), CamemBERT (Martin et al. 2020),
RoBERTa with norms in front (Ott et al. 2019) and data2vec for text (Baevski et al. 2022).
"""

from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.families.bert import ENCODER_PLAN

FAMILY = Family(
    model_types=("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "roberta-prelayernorm", "data2vec-text"),
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
