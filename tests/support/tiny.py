"""Tiny random backbones with tokenizers, and small data sets, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from prompt_tuning.backbone.families import find_family

WORDS = [f"w{i}" for i in range(60)]
ANSWERS = ["yes.", "no.", "maybe."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]

ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 80,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
# Fewer key/value heads than heads, a head size that is not hidden / heads, biases where the family allows them.
DECODER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "vocab_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
# As many key/value heads as heads.
GPT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FROM_PADDING = {**ENCODER, "type_vocab_size": 1, "pad_token_id": 1}
PLAIN = {key: value for key, value in DECODER.items() if key != "head_dim"}
# Heads that are wider than the model, and fewer buckets than texts have distances; scores, which nothing divides, are small
# enough that a softmax sees more than one token.
T5 = {
    "initializer_factor": 0.5,
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 48,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "vocab_size": 80,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 10,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {**ENCODER, "pad_token_id": 0},
    "ernie": {**ENCODER, "pad_token_id": 0, "use_task_id": True},
    "electra": {**ENCODER, "pad_token_id": 0, "embedding_size": 24},
    "albert": {**ENCODER, "pad_token_id": 0, "embedding_size": 24},
    "roberta": FROM_PADDING,
    "xlm-roberta": FROM_PADDING,
    "xlm-roberta-xl": FROM_PADDING,
    "camembert": FROM_PADDING,
    "roberta-prelayernorm": FROM_PADDING,
    "data2vec-text": FROM_PADDING,
    "distilbert": {
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 48,
        "vocab_size": 80,
        "max_position_embeddings": 64,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "pad_token_id": 0,
    },
    "eurobert": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 80,
        "max_position_embeddings": 64,
        "attention_bias": True,
        "mlp_bias": True,
        "attention_dropout": 0.1,
        "pad_token_id": 0,
    },
    # A global layer and two local ones, in which a token sees four to each side.
    "modernbert": {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 80,
        "max_position_embeddings": 64,
        "local_attention": 8,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
        "embedding_dropout": 0.1,
        "mlp_dropout": 0.1,
        "attention_dropout": 0.1,
        "pad_token_id": 0,
    },
    "deberta": {**ENCODER, "pad_token_id": 0, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    # Buckets of which two rows of a test have more distances, and all that the versions 2 and 3 can have.
    "deberta-v2": {
        **ENCODER,
        "pad_token_id": 0,
        "relative_attention": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    "t5": T5,
    "mt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "umt5": {**T5, "feed_forward_proj": "gated-gelu"},
    "bart": {
        "d_model": 32,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "vocab_size": 80,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    },
    "llama": {**DECODER, "attention_bias": True},
    "mistral": {**DECODER, "sliding_window": None},
    "qwen2": PLAIN,
    "qwen3": {**DECODER, "attention_bias": True},
    "glm": {**DECODER, "attention_bias": True},
    "glm4": {**DECODER, "attention_bias": True},
    "gpt2": {**GPT, "n_inner": 48, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "gpt_neox": {**GPT, "intermediate_size": 48, "rotary_pct": 0.5, "hidden_dropout": 0.1, "attention_dropout": 0.1},
    "opt": {**GPT, "word_embed_proj_dim": 32, "ffn_dim": 48, "dropout": 0.1},
    "phi3": {**DECODER, "resid_pdrop": 0.1, "original_max_position_embeddings": 64},
    "gpt_bigcode": {**GPT, "n_inner": 48, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "phi": {**PLAIN, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1},
    "starcoder2": {**PLAIN, "sliding_window": None, "residual_dropout": 0.1, "embedding_dropout": 0.1},
    "cohere": {**PLAIN, "attention_bias": True, "logit_scale": 0.5},
    "cohere2": {
        **DECODER,
        "attention_bias": True,
        "logit_scale": 0.5,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "granite": {
        **PLAIN,
        "attention_bias": True,
        "embedding_multiplier": 1.5,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
    "smollm3": {**PLAIN, "attention_bias": True, "no_rope_layers": [1, 0, 1]},
    "gemma": DECODER,
    # Caps low enough to bend the tiny model's scores and logits.
    "gemma2": {
        **DECODER,
        "attention_bias": True,
        "query_pre_attn_scalar": 24,
        "sliding_window": 64,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 1.0,
    },
    # One key/value head, a scale that is not the head size's, local layers and global ones with rotary bases of their own.
    "gemma3_text": {
        **DECODER,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "query_pre_attn_scalar": 24,
        "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


def make_backbone(folder: Path, model_type: str, seed: int = 0, with_pooler: bool = True, **changes: Any) -> Path:
    """Save a random backbone of a family, biases and norms random too, with a word tokenizer; returns its folder."""
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **changes})
    torch.manual_seed(seed)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    if not with_pooler and getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.save_pretrained(folder)
    make_tokenizer(config.pad_token_id).save_pretrained(folder)
    return folder


def make_language_backbone(folder: Path, model_type: str, seed: int = 0, **changes: Any) -> Path:
    """As :func:`make_backbone`, saved with its language-model head; masked models get a [MASK] token."""
    config = AutoConfig.for_model(model_type, **{**CONFIGS[model_type], **changes})
    is_causal = find_family(model_type).pooling == "last"
    torch.manual_seed(seed)
    kind = (
        AutoModelForSeq2SeqLM
        if config.is_encoder_decoder
        else AutoModelForCausalLM
        if is_causal
        else AutoModelForMaskedLM
    )
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(std=0.3)
    model.save_pretrained(folder)
    make_tokenizer(config.pad_token_id, with_mask=not is_causal).save_pretrained(folder)
    return folder


TO_WRITE = " to write"
"""Behind a model type: saved with its language-model head, which for T5 means both sides."""


def make_any(folder: Path, name: str, **changes: Any) -> Path:
    """A random backbone of a model type, with its language-model head where :data:`TO_WRITE` stands behind it."""
    model_type = name.removesuffix(TO_WRITE)
    return (make_backbone if model_type == name else make_language_backbone)(folder, model_type, **changes)


def make_tokenizer(pad_token_id: int = 0, with_mask: bool = False) -> PreTrainedTokenizerFast:
    """One word, one token; [CLS] a [SEP] b [SEP] with token types."""
    names = list(SPECIAL)
    names.insert(pad_token_id, names.pop(0))
    vocabulary = {name: i for i, name in enumerate([*names, *WORDS, *ANSWERS, "[MASK]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]" if with_mask else None,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"] if pad_token_id == 0 else ["input_ids"],
    )


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_texts(folder: Path, sizes: dict[str, int] | None = None, labels: int = 3, seed: int = 0) -> Path:
    """A folder of classification data whose labels depend on the words; lengths from 1 to 14 words."""
    generator = torch.Generator().manual_seed(seed)
    for split, count in (sizes or {"train": 22, "dev": 9, "test": 7}).items():
        rows = []
        for i in range(count):
            label = i % labels
            length = int(torch.randint(1, 15, (1,), generator=generator))
            ids = torch.randint(0, len(WORDS) // labels, (length,), generator=generator) * labels + label
            rows.append({"text": " ".join(WORDS[j] for j in ids.tolist()), "label": f"class{label}"})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def make_copa(folder: Path, sizes: dict[str, int] | None = None, seed: int = 1) -> Path:
    """A folder in COPA's format: the right choice repeats a word of the premise."""
    generator = torch.Generator().manual_seed(seed)
    for split, count in (sizes or {"train": 13, "val": 6}).items():
        rows = []
        for i in range(count):
            a, b, c = (WORDS[int(j)] for j in torch.randperm(len(WORDS), generator=generator)[:3])
            choices = [f"{a} {b}", f"{c} {b} {c}"]
            label = i % 2
            pair = choices if label == 0 else choices[::-1]
            question = ("cause", "effect")[i % 2]
            rows.append(
                {"premise": f"{a} {a}", "question": question, "choice1": pair[0], "choice2": pair[1], "label": label}
            )
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def run_json(backbone: Path, data: Path, /, **sections: Any) -> dict[str, Any]:
    """A small run file for :func:`make_texts` data in float64, everything random switched off unless asked for."""
    from prompt_tuning.settings.members import merge

    base = {
        "task": {"kind": "classification", "name": "texts"},
        "backbone": {"path": str(backbone), "dtype": "float64"},
        "data": {"path": str(data), "max_length": 24},
        "prompt": {"length": 5},
        "optimizer": {"lr": 0.02},
        "train": {"epochs": 2, "batch_size": 8, "backbone_dropout": False},
    }
    return merge(base, sections)


def make_tags(folder: Path, sizes: dict[str, int] | None = None, seed: int = 2) -> Path:
    """A folder of tagged sentences of 1 to 9 words: words divisible by 5 start a span that the next word may continue."""
    generator = torch.Generator().manual_seed(seed)
    for split, count in (sizes or {"train": 15, "dev": 7}).items():
        rows = []
        for i in range(count):
            ids = torch.randint(0, len(WORDS), (1 + (i * 5) % 9,), generator=generator).tolist()
            tags = ["B-five" if j % 5 == 0 else "O" for j in ids]
            tags = ["I-five" if i and tags[i - 1] == "B-five" and tag == "O" else tag for i, tag in enumerate(tags)]
            rows.append({"words": [WORDS[j] for j in ids], "tags": tags})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def make_questions(folder: Path, sizes: dict[str, int] | None = None, seed: int = 3) -> Path:
    """A folder of questions: the answer is the two words behind the question's word; some contexts take several windows."""
    generator = torch.Generator().manual_seed(seed)
    for split, count in (sizes or {"train": 9, "dev": 5}).items():
        rows = []
        for i in range(count):
            ids = torch.randperm(len(WORDS), generator=generator)[: 6 + 7 * (i % 4)].tolist()
            words = [WORDS[j] for j in ids]
            place = (i * 5) % (len(words) - 2)
            text = " ".join(words[place + 1 : place + 3])
            start = len(" ".join(words[: place + 1])) + 1
            answers = [] if i % 4 == 3 else [{"text": text, "answer_start": start}]
            rows.append({"question": f"{words[place]} w1", "context": " ".join(words), "answers": answers})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def make_values(folder: Path, sizes: dict[str, int] | None = None, seed: int = 4) -> Path:
    """A folder of texts with a number: the mean of their words' numbers, in tens."""
    generator = torch.Generator().manual_seed(seed)
    for split, count in (sizes or {"train": 11, "dev": 6}).items():
        rows = []
        for i in range(count):
            ids = torch.randint(0, len(WORDS), (1 + (i * 3) % 8,), generator=generator).tolist()
            rows.append({"text": " ".join(WORDS[j] for j in ids), "label": sum(ids) / len(ids) / 10})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder
