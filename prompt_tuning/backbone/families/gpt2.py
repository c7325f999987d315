"""GPT-2 (Radford et al. 2019): causal, absolute positions from 0, queries, keys and values of one matrix [in, out]."""

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family

FAMILY = Family(
    model_types=("gpt2",),
    layers="h",
    attention="attn",
    by_token=("mlp", "mlp"),
    plan=Plan(
        rules=(
            vocabulary("wte"),
            whole("wpe"),
            columns("h.*.attn.c_attn", "heads", "key_value_heads", "key_value_heads", transposed=True),
            rows("h.*.attn.c_proj", "heads", transposed=True),
            columns("h.*.mlp.c_fc", transposed=True),
            rows("h.*.mlp.c_proj", transposed=True),
        ),
        divided=(("h.*.attn", ("split_size",)),),
    ),
    pooling="last",
    hidden_dropout=("resid_pdrop", "embd_pdrop"),
    attention_dropout=("attn_pdrop",),
    query_and_value=("c_attn",),
)
