"""ModernBERT (Warner et al. 2024): global layers and local ones, each kind with rotary positions of its own; no pooler.

In a local layer a token sees the text half a window to either side, and all of the prefix, which stands outside the window.
Texts are pooled by their mean, as the published classifiers are: the first token of a long text sees little of it locally.
"""

from model_parallel.plan import Plan, columns, rows, vocabulary
from prompt_tuning.backbone.families import Family

FAMILY = Family(
    model_types=("modernbert",),
    layers="layers",
    attention="attn",
    by_token=("mlp", "mlp"),
    plan=Plan(
        rules=(
            vocabulary("embeddings.tok_embeddings"),
            columns("layers.*.attn.Wqkv", "heads", "key_value_heads", "key_value_heads"),
            rows("layers.*.attn.Wo", "heads"),
            columns("layers.*.mlp.Wi", "width", "width"),
            rows("layers.*.mlp.Wo"),
        )
    ),
    pooling="mean",
    hidden_dropout=("embedding_dropout", "mlp_dropout"),
    attention_dropout=("attention_dropout",),
    query_and_value=("Wqkv",),
    language_head=("head", "decoder"),
)
