"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler, under names of its own."""

from transformers import PreTrainedModel

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family


def _open(model: PreTrainedModel) -> None:
    """Keep the model from computing positions anew that its file holds."""
    model.config.sinusoidal_pos_embds = False


FAMILY = Family(
    model_types=("distilbert",),
    layers="transformer.layer",
    attention="attention",
    by_token=("sa_layer_norm", ""),
    plan=Plan(
        rules=(
            vocabulary("embeddings.word_embeddings"),
            whole("embeddings.position_embeddings"),
            columns("transformer.layer.*.attention.[qkv]_lin", "heads"),
            rows("transformer.layer.*.attention.out_lin", "heads"),
            columns("transformer.layer.*.ffn.lin1"),
            rows("transformer.layer.*.ffn.lin2"),
        )
    ),
    pooling="first",
    hidden_dropout=("dropout",),
    attention_dropout=("attention_dropout",),
    query_and_value=("q_lin", "v_lin"),
    language_head=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    open=_open,
)
