"""LLaMA (Touvron et al. 2023), Mistral and Qwen 2 and 3: causal, rotary positions, no pooler."""

from prompt_tuning.backbones import Family

FAMILY = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    attention_modules=lambda model: [layer.self_attn for layer in model.layers],
    pooling="last",
    hidden_dropout=(),
    attention_dropout=("attention_dropout",),
)
