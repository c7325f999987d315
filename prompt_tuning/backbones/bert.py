"""BERT (Devlin et al. 2019): absolute positions from 0, pooler pretrained with next-sentence prediction."""

from prompt_tuning.backbones import Family

FAMILY = Family(
    model_types=("bert",),
    attention_modules=lambda model: [layer.attention.self for layer in model.encoder.layer],
    pooling="pooler",
    hidden_dropout=("hidden_dropout_prob",),
    attention_dropout=("attention_probs_dropout_prob",),
)
