"""What was compared with PEFT 0.21.2: model types, heads and tasks, and where its prefix tuning computes otherwise than ours."""

from __future__ import annotations

from prompt_tuning.backbone.find import Description, smallest_window
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.formats._found import has_types
from prompt_tuning.settings.schema import RunFile

HEADS = {
    **dict.fromkeys(("bert",), "pooled"),
    **dict.fromkeys(("roberta", "xlm-roberta"), "dense"),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "glm", "glm4", "gpt2"), "score"),
}
"""Model types whose classifiers were compared, and how they are built: a linear layer behind the pooler, one behind a dense
layer of their own, or one without bias on the last token."""
KINDS = {
    "SEQ_CLS": ("classification", "choice", "regression"),
    "TOKEN_CLS": ("tagging",),
    "QUESTION_ANS": ("span",),
    "CAUSAL_LM": ("generation",),
}
CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
}
_ONLY_ZEROS = (
    "PEFT leaves token types out of questions, and PromptFleet's texts on this backbone have them, so that answers would differ;"
    " use a backbone without token types, such as RoBERTa"
)


def check_model(where: str, described: Description, task: str, settings: RunFile, length: int) -> None:
    """For a prefix of ``length`` tokens. Raise :class:`UserError` unless PEFT on this backbone computes what a prompt of ours does."""
    model_type = described.config.model_type
    if model_type not in HEADS:
        raise UserError(
            f"{where}: PEFT's prefix on {model_type} has not been compared with PromptFleet's; choose one of {', '.join(HEADS)}"
        )
    if task == "QUESTION_ANS" and has_types(described):
        raise UserError(f"{where}: {_ONLY_ZEROS}")
    if task in ("TOKEN_CLS", "QUESTION_ANS") and HEADS[model_type] == "score":
        raise UserError(f"{where}: {task} on {model_type}, a decoder, has not been compared; use an encoder")
    if task == "CAUSAL_LM" and HEADS[model_type] != "score":
        raise UserError(f"{where}: {task} on {model_type}, an encoder, is nothing that PEFT runs; use a decoder")
    window = smallest_window(described.config)
    written = max(settings.data.max_target_length, settings.decode.max_new_tokens or 0) if settings.is_written else 0
    if window is not None and length + settings.data.max_length + written > window:
        raise UserError(
            f"{where}: local layers see {window} tokens, and PEFT's prefix is lost from sight in longer texts, ours never;"
            f" set the longest text to {max(0, window - length - written)} tokens or less"
        )
