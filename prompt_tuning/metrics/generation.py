"""Metrics of written texts. BLEU and chrF are sacrebleu's, ROUGE is rouge-score's (extra `generation`).

Gold: a list of acceptable texts an example. Predicted: :class:`Written`, of which those without a text do not count but for
perplexity. All but perplexity are fractions of 1, and the larger the better.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.metrics import Metric
from prompt_tuning.metrics.texts import normalise

_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters that are words by themselves, as in a regular expression's class: kana and Chinese characters."""
_TOKENS = re.compile(rf"[{_SINGLE}]|[^\W_{_SINGLE}]+")
_SINGLES = re.compile(rf"([{_SINGLE}])")
_KANA = re.compile("[\u3040-\u30ff]")

Gold = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Written:
    """What was written to one example, None where nothing was asked for, and how likely its target was.

    ``log_probability``: natural logarithm, summed over the target's ``num_tokens`` tokens.
    """

    text: str | None
    log_probability: float
    num_tokens: int


def mean_loss(predicted: Sequence[Written]) -> float:
    """Mean cross entropy of all targets' tokens; NaN where there are none."""
    tokens = sum(own.num_tokens for own in predicted)
    return -sum(own.log_probability for own in predicted) / tokens if tokens else math.nan


def perplexity(gold: Gold, predicted: Sequence[Written]) -> float:
    """Power of the mean cross entropy of all targets' tokens; the smaller the better."""
    loss = mean_loss(predicted)
    return math.exp(loss) if loss < 700 else loss if math.isnan(loss) else math.inf


def likelihood(gold: Gold, predicted: Sequence[Written]) -> float:
    """Geometric mean of the probabilities of all targets' tokens, which is 1 / perplexity; the larger the better."""
    return math.exp(-mean_loss(predicted))


def exact_match(gold: Gold, predicted: Sequence[Written]) -> float:
    """Share of texts that equal one of theirs, but for blanks."""
    return _mean([_best(_same, texts, own) for texts, own in _both(gold, predicted)])


def f1(gold: Gold, predicted: Sequence[Written]) -> float:
    """Mean over examples of the best F1 of words: SQuAD's normalised ones, Chinese characters and kana one by one."""
    return _mean([_best(_overlap, texts, own) for texts, own in _both(gold, predicted)])


def bleu(gold: Gold, predicted: Sequence[Written]) -> float:
    """sacrebleu's corpus BLEU with the tokenizer that fits the references: zh, char for Japanese, else 13a."""
    sacrebleu = need("sacrebleu")
    texts, own = _columns(gold, predicted)
    kind = "13a"
    if _is_by_character(texts):
        kind = "char" if any(_KANA.search(text) for some in texts for text in some) else "zh"
    return _corpus(sacrebleu.metrics.BLEU(tokenize=kind), texts, own)


def bleu4(gold: Gold, predicted: Sequence[Written]) -> float:
    """Mean over examples of sacrebleu's sentence BLEU of characters, as Chinese is often scored."""
    metric = need("sacrebleu").metrics.BLEU(tokenize="char", effective_order=False)
    return _mean(
        [float(metric.sentence_score(own, list(texts) or [""]).score) / 100 for texts, own in _both(gold, predicted)]
    )


def chrf(gold: Gold, predicted: Sequence[Written]) -> float:
    """sacrebleu's corpus chrF2."""
    return _corpus(need("sacrebleu").metrics.CHRF(), *_columns(gold, predicted))


def _corpus(metric: Any, texts: list[Sequence[str]], own: list[str]) -> float:
    if not own:
        return 0.0
    most = max(map(len, texts))
    streams = [[some[i] if i < len(some) else None for some in texts] for i in range(most)]
    return float(metric.corpus_score(own, streams).score) / 100 if streams else 0.0


def _rouge(kind: str) -> Metric:
    def rouge(gold: Gold, predicted: Sequence[Written]) -> float:
        texts, own = _columns(gold, predicted)
        is_latin = sum(len(re.findall("[a-zA-Z]", text)) for some in texts for text in some) * 2 >= _letters(texts)
        scorer = need("rouge_score.rouge_scorer").RougeScorer(
            [kind], use_stemmer=True, tokenizer=None if is_latin else _Words()
        )
        scores = [
            max((scorer.score(text, written)[kind].fmeasure for text in some), default=0.0)
            for some, written in zip(texts, own, strict=True)
        ]
        return _mean(scores)

    rouge.__doc__ = f"""rouge-score's {kind}: mean over examples of the best F1, words stemmed.

    Where most letters are not a to z, of which rouge-score would see none, words are Unicode's, and Chinese characters and kana
    stand alone.
    """
    return rouge


rouge1, rouge2, rouge_l = (_rouge(kind) for kind in ("rouge1", "rouge2", "rougeL"))

METRICS: dict[str, Metric] = {
    "f1": f1,
    "exact_match": exact_match,
    "bleu": bleu,
    "bleu4": bleu4,
    "chrf": chrf,
    "rouge1": rouge1,
    "rouge2": rouge2,
    "rouge_l": rouge_l,
    "likelihood": likelihood,
    "perplexity": perplexity,
}
_PACKAGES = {
    "bleu": "sacrebleu",
    "bleu4": "sacrebleu",
    "chrf": "sacrebleu",
    **dict.fromkeys(("rouge1", "rouge2", "rouge_l"), "rouge_score"),
}


def check_packages(metrics: Sequence[str]) -> None:
    """Raise :class:`UserError` where a metric's package is not there."""
    for name in metrics:
        if name in _PACKAGES:
            need(_PACKAGES[name])


def need(module: str) -> Any:
    """A module of the extra `generation`. Raises :class:`UserError` where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError("BLEU, chrF and ROUGE need extra packages: pip install 'promptfleet[generation]'") from None


class _Words:
    """What rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return _TOKENS.findall(text.lower())


def _both(gold: Gold, predicted: Sequence[Written]) -> list[tuple[Sequence[str], str]]:
    """References and text of the examples that were written."""
    return [(texts, own.text) for texts, own in zip(gold, predicted, strict=True) if own.text is not None]


def _columns(gold: Gold, predicted: Sequence[Written]) -> tuple[list[Sequence[str]], list[str]]:
    pairs = _both(gold, predicted)
    return [texts for texts, _ in pairs], [text for _, text in pairs]


def _letters(texts: list[Sequence[str]]) -> int:
    return sum(character.isalpha() for some in texts for text in some for character in text)


def _is_by_character(texts: list[Sequence[str]]) -> bool:
    """Whether most letters are Chinese characters or kana."""
    singles = sum(len(_SINGLES.findall(text)) for some in texts for text in some)
    return 2 * singles > _letters(texts)


def _same(gold: str, own: str) -> float:
    return float(gold.split() == own.split())


def _overlap(gold: str, own: str) -> float:
    """F1 of words; 1 where neither text has any."""
    ours, theirs = (_SINGLES.sub(r" \1 ", normalise(text)).split() for text in (gold, own))
    if not ours and not theirs:
        return 1.0
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def _best(compare: Callable[[str, str], float], texts: Sequence[str], own: str) -> float:
    return max((compare(text, own) for text in texts), default=0.0)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
