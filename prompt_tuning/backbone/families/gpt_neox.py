"""GPT-NeoX (Black et al. 2022) and Pythia: causal, partly rotary, attention and MLP side by side; each head's query, key and
value stand together in one matrix, so that a cut between heads is one between rows."""

from model_parallel.plan import Plan, columns, rows, vocabulary
from prompt_tuning.backbone.families import Family

FAMILY = Family(
    model_types=("gpt_neox",),
    layers="layers",
    attention="attention",
    by_token=("mlp", "mlp"),
    plan=Plan(
        rules=(
            vocabulary("embed_in"),
            columns("layers.*.attention.query_key_value"),
            rows("layers.*.attention.dense", "heads"),
            columns("layers.*.mlp.dense_h_to_4h"),
            rows("layers.*.mlp.dense_4h_to_h"),
        )
    ),
    pooling="last",
    hidden_dropout=("hidden_dropout",),
    attention_dropout=("attention_dropout",),
    query_and_value=("query_key_value",),
)
