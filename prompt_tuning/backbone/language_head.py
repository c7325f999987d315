"""The backbone's frozen language-model head, and cloze templates: how likely is each candidate in a gap of the text.

Masked models see the candidate's tokens masked, all at once, and score them there; causal ones score each token from the
one before it. A candidate's score is the sum of its tokens' log probabilities (Schick and Schütze 2021; GLM, Du et al. 2022).
The target of a generation task is scored as a single candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from model_parallel.apply import Cut, share_output
from model_parallel.grid import Grid, TopologyError
from model_parallel.layers import VocabularyParallelEmbedding
from model_parallel.loading import StoredTensor, WeightsError, load_weights, stored_tensors
from model_parallel.vocabulary import VocabularyParallelOutput
from prompt_tuning.backbone.families import Family
from prompt_tuning.errors import UserError
from prompt_tuning.tokens.packed import MemberRows, Teacher


class LanguageHead(nn.Module):
    """In a prompt's place for a head: nothing of its own to train, the backbone's language head scores candidates."""

    pooling = "cloze"

    def __init__(self, language_model: nn.Module | None) -> None:
        super().__init__()
        # Not registered: it is the backbone's, frozen, and travels with no prompt.
        self._language_model = (language_model,)

    def connect(self, language_model: nn.Module | None) -> None:
        """Give it the backbone's language head. Raises :class:`UserError` where the backbone was loaded without."""
        if language_model is None:
            raise UserError(
                "the prompt fills gaps, but its backbone was loaded without language head; use attach(prompt)"
            )
        self._language_model = (language_model,)

    def pool(self, hidden: Tensor, rows: MemberRows, backbone_pooler: nn.Module | None = None) -> Tensor:
        """Hidden states of a member's text tokens [t, H], from those of all [T, H]."""
        return hidden[rows.tokens]

    def forward(self, hidden: Tensor, rows: MemberRows, row_keys: Tensor | None = None, dropout: float = 0.0) -> Tensor:
        """Log probability of each row's candidate [r], from hidden states [t, H] and the wanted tokens, the rows' tags.

        Where rows have a teacher, [r, 2]: behind it how well each row agrees with its own, see :func:`agreement`.
        """
        (language_model,) = self._language_model
        assert language_model is not None and rows.tags is not None and rows.asked is not None
        asked, wanted = rows.asked, rows.tags[rows.asked]
        chosen = log_probabilities(language_model, hidden[asked], wanted, rows.teacher)
        return chosen.new_zeros(len(rows.lengths), *chosen.shape[1:]).index_add(0, rows.row_of_token[asked], chosen)


LOGITS_AT_ONCE = 1 << 25
"""Numbers of a chunk of logits: what the largest vocabularies take for a hundred tokens."""


def log_probabilities(head: nn.Module, hidden: Tensor, wanted: Tensor, teacher: Teacher | None = None) -> Tensor:
    """Natural logarithm of the probability of each wanted token [a], int64, from hidden states [a, H]; with a teacher [a, 2], behind it
    how well each place agrees with its own, see :func:`agreement`.

    Differentiable in the hidden states, of two columns the last. Logits [a, vocabulary] never exist whole: they are made chunk by
    chunk, once, and over tensor ranks each has those of its part of the vocabulary. float32, or float64 where the head is.
    """
    output, (chunk, dtype) = shared_output(head), _chunks(head)

    def score(states: Tensor, tokens: Tensor, *taught: Tensor) -> Tensor:
        logits = _logits(head, states, dtype)
        if taught:
            tokens = torch.cat([tokens[:, None], taught[0].clamp_min(0)], 1)
        if output is not None:
            found = output.log_probabilities(logits, tokens)
        elif taught:
            found = logits.gather(1, tokens) - logits.logsumexp(1, keepdim=True)
        else:
            found = -nn.functional.cross_entropy(logits, tokens, reduction="none")
        return torch.stack([found[:, 0], agreement(found, Teacher(*taught))], 1) if taught else found

    given = (wanted,) if teacher is None else (wanted, teacher.tokens, teacher.log_probabilities)
    pieces = list(zip(*(own.split(chunk) for own in given), strict=True))
    if torch.is_grad_enabled() and hidden.requires_grad:
        found: Tensor = _Sloped.apply(hidden, chunk, score, pieces)
        return found
    return torch.cat([score(states, *piece) for states, piece in zip(hidden.split(chunk), pieces, strict=True)])


class _Sloped(torch.autograd.Function):
    """Scores of places, and with each chunk of them their slopes in the hidden states [a, H]: all that the backward needs, for what a
    place scores depends on its own states alone. So no logits are kept, or made again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, chunk: int, score: Callable[..., Tensor], pieces: list[Any]) -> Tensor:
        scores, slopes = [], []
        for states, piece in zip(hidden.split(chunk), pieces, strict=True):
            with torch.enable_grad():
                own = states.detach().requires_grad_()
                found = score(own, *piece)
                slopes += torch.autograd.grad(_last(found).sum(), own)
            scores.append(found.detach())
        ctx.save_for_backward(torch.cat(slopes))
        return torch.cat(scores)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * _last(upstream[0])[:, None]).to(slopes.dtype), None, None, None


def _last(found: Tensor) -> Tensor:
    """[a] of [a], or the last of [a, n]."""
    return found if found.dim() == 1 else found[:, -1]


def likeliest(head: nn.Module, hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Log probabilities and tokens [a, count], the likeliest first, that follow hidden states [a, H]; of a head that is whole."""
    chunk, dtype = _chunks(head)
    found = [_logits(head, states, dtype).log_softmax(-1).topk(count) for states in hidden.split(chunk)]
    return torch.cat([own.values for own in found]), torch.cat([own.indices for own in found])


def _chunks(head: nn.Module) -> tuple[int, torch.dtype]:
    """How many rows of logits are made at once, of all ranks as many, which meet in each; and their type."""
    output, weight = shared_output(head), _output_embedding(head)
    size = max(16, LOGITS_AT_ONCE // (len(weight) if output is None else output.most))
    return size, torch.float64 if weight.dtype == torch.float64 else torch.float32


def _logits(head: nn.Module, states: Tensor, dtype: torch.dtype) -> Tensor:
    found: Tensor = head(states.to(_output_embedding(head).dtype)).to(dtype)
    return found


def _output_embedding(head: nn.Module) -> Tensor:
    """[vocabulary, H]"""
    return max(head.parameters(), key=len)


LEAST_REST = 1e-6
"""Probability below which what a student leaves for all other tokens is not told from nothing: float32 sums to 1 no better."""


def agreement(found: Tensor, teacher: Teacher) -> Tensor:
    """Minus the Kullback-Leibler divergence [a] of a student from its teacher, from the student's log probabilities [a, 1 + k] of
    the wanted token and of the teacher's k likeliest; where there is no teacher, the log probability of the wanted token.

    Over k + 1 outcomes, the last of them any other token: ``sum_k p (log p - log q) + p_rest (log p_rest - log q_rest)``.
    """
    own, is_there = found[:, 1:], teacher.tokens >= 0
    log_p = teacher.log_probabilities.to(own.dtype).masked_fill(~is_there, 0)
    p, q = log_p.exp() * is_there, own.exp() * is_there
    rest_p, rest_q = ((1 - share.sum(1)).clamp_min(LEAST_REST) for share in (p, q))
    divergence = (p * (log_p - own)).sum(1) + rest_p * (rest_p.log() - rest_q.log())
    return torch.where(is_there.any(1), -divergence, found[:, 0])


def shared_output(head: nn.Module) -> VocabularyParallelOutput | None:
    """The output embedding of a head whose vocabulary is shared out over tensor ranks; None: each has all of it."""
    return next((module for module in head.modules() if isinstance(module, VocabularyParallelOutput)), None)


class _Scaled(nn.Module):
    """A head whose logits are multiplied (Cohere, Granite, T5), then bent so that none is as large as a cap (Gemma 2)."""

    def __init__(self, head: nn.Module, config: Any, factor: float = 1.0) -> None:
        super().__init__()
        self.head, self.cap = head, getattr(config, "final_logit_softcapping", None)
        own = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        self.factor = own * factor

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(hidden) * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


class _Biased(nn.Module):
    """A head with a bias of its own for each logit, which files keep apart from it (BART)."""

    def __init__(self, head: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.head, self.own = head, nn.Module()
        self.own.register_buffer("final_logits_bias", bias)

    def forward(self, hidden: Tensor) -> Tensor:
        bias, output = self.own.get_buffer("final_logits_bias")[0], shared_output(self.head)
        if output is not None:
            bias = bias[output.first : output.first + len(output.weight)]
        found: Tensor = self.head(hidden) + bias
        return found


class _Handed(nn.Module):
    """A head that is handed the word embedding, whose vectors its outputs are products with."""

    def __init__(self, head: nn.Module, words: nn.Module) -> None:
        super().__init__()
        self.head = head
        # Not registered: it is the backbone's.
        self._words = (words,)

    def forward(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.head(hidden, *self._words)
        return found


def load_language_head(
    folder: Path, config: Any, model: PreTrainedModel, family: Family, grid: Grid, words: StoredTensor | None = None
) -> tuple[nn.Module, int]:
    """The frozen head of the stored language model, its output embedding tied to ``model``'s where the config says so.

    ``words``: where the word embedding is stored, for a head that shall have a copy of its own, as under ZeRO-3, which lends a
    module's weights to no other. Over tensor ranks the vocabulary is shared out. Returns the head and the bytes read. Raises
    :class:`WeightsError` where the files have none, :class:`TopologyError` where it cannot be apart from the embedding.
    """
    with torch.device("meta"):
        kind = AutoModelForCausalLM if family.pooling == "last" else AutoModelForMaskedLM
        if family.sites:
            kind = AutoModelForSeq2SeqLM
        if not family.has_language_head:
            raise WeightsError(
                f"a cloze template needs a language-model head, and an encoder of model_type {config.model_type!r} has none;"
                " choose another backbone, or another data.template"
            )
        whole = kind.from_config(config, dtype=model.dtype)
    own = {name: child for name, child in whole.named_children() if name != whole.base_model_prefix}
    head = nn.ModuleDict({name: own[name] for name in family.language_head or own})
    stored = stored_tensors(folder, set(head.state_dict()), "")
    for target, source in (whole._tied_weights_keys or {}).items():
        if source in stored and target not in stored:
            stored[target] = stored[source]
    # Newer heads of DeBERTa have no output embedding and are handed the word embedding.
    is_handed = getattr(config, "legacy", True) is False
    if is_handed and (words is not None or grid.tensor > 1):
        raise TopologyError(
            f"the language head of this {config.model_type} takes the whole word embedding; use parallel.tensor 1 and"
            " parallel.zero false"
        )
    cuts: dict[str, Cut] = {}
    if not is_handed:
        output: Any = whole.get_output_embeddings()
        (name,) = [name for name, module in head.named_modules() if module is output]
        is_tied = config.tie_word_embeddings and not (family.has_own_output and f"{name}.weight" in stored)
        if is_tied and words is not None:
            stored[f"{name}.weight"] = words
        elif is_tied:
            output.weight = model.get_input_embeddings().weight
        # Of a tied embedding, what the embedding's own rank has.
        if grid.tensor > 1 and (not is_tied or isinstance(model.get_input_embeddings(), VocabularyParallelEmbedding)):
            cuts = share_output(head, name, grid)
    wanted = {name for name, value in head.state_dict().items() if value.is_meta}
    missing = sorted(wanted - set(stored))
    if missing:
        raise WeightsError(
            "a cloze template or generation task needs the language-model head, which the weights lack"
            f" ({missing[0]}); choose a backbone that was saved with it"
        )
    bytes_read = load_weights(head, stored, cuts, grid)
    chain: nn.Module = nn.Sequential(*head.values())
    bias = "final_logits_bias"
    found = stored_tensors(folder, {bias}, "") if hasattr(whole, bias) else {}
    if bias in found:
        chain = _Biased(chain, getattr(whole, bias))
        bytes_read += load_weights(chain.own, found, {}, grid)
    if is_handed:
        (only,) = head.values()
        chain = _Handed(only, model.get_input_embeddings())
    names, factor = ("final_logit_softcapping", "logit_scale", "logits_scaling"), family.logit_factor(config)
    if factor != 1 or any(getattr(config, name, None) for name in names):
        chain = _Scaled(chain, config, factor)
    return chain.requires_grad_(False).eval(), bytes_read


def tied_embedding(folder: Path, model: PreTrainedModel, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The word embedding by its name where files have it under the name of the output embedding it is tied to alone."""
    name = word_embedding_name(model)
    # T5's files may name it after its encoder, whose output embedding is another.
    outputs = {alias for alias, source in (model._tied_weights_keys or {}).items() if source == name}
    if not outputs and model.config.tie_word_embeddings:
        outputs = {"lm_head.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight"}
    if name in stored or not outputs:
        return {}
    found = list(stored_tensors(folder, outputs, "").values())
    return {name: found[0]} if found else {}


def word_embedding_name(model: PreTrainedModel) -> str:
    """Name of the parameter [vocabulary, H] that words are looked up in."""
    weight = model.get_input_embeddings().weight
    return str(next(name for name, parameter in model.named_parameters() if parameter is weight))
