"""BERT (Devlin et al. 2019): absolute positions from 0, pooler pretrained with next-sentence prediction."""

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family

ENCODER_PLAN = Plan(
    rules=(
        vocabulary("embeddings.word_embeddings"),
        whole("embeddings.position_embeddings"),
        whole("embeddings.token_type_embeddings"),
        columns("encoder.layer.*.attention.self.[qkv]*", "heads"),
        rows("encoder.layer.*.attention.output.dense", "heads"),
        columns("encoder.layer.*.intermediate.dense"),
        rows("encoder.layer.*.output.dense"),
    ),
    divided=(("encoder.layer.*.attention.self", ("num_attention_heads", "all_head_size")),),
)

FAMILY = Family(
    model_types=("bert",),
    layers="encoder.layer",
    attention="attention.self",
    by_token=("attention.output", ""),
    plan=ENCODER_PLAN,
    pooling="pooler",
    hidden_dropout=("hidden_dropout_prob",),
    attention_dropout=("attention_probs_dropout_prob",),
    query_and_value=("query", "value"),
)
