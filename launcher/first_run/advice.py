"""The settings of a first run on one's own data, each with the reason for it."""

from __future__ import annotations

import importlib.util
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping

from launcher.first_run.files import Split
from launcher.first_run.lengths import choose_also, choose_lengths
from launcher.first_run.reasons import Advice
from prompt_tuning.backbone.find import Description
from prompt_tuning.errors import UserError
from prompt_tuning.formats.tags import OUTSIDE, to_iob2
from prompt_tuning.kinds import find_kind
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.tasks.labels import label_name
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.rows import own_rows, sequences, template_of

STEPS = {"tokens": 800, "texts": 200, "generation": 100}
"""Of a first run: what the quick start has, and more of the smaller steps of tags and spans; writing texts is slow."""


def advise(
    advice: Advice, task: Task, splits: Mapping[str, Split], described: Description | None, base: RunFile
) -> None:
    """Add what follows from the data and the backbone; ``base``: what the recipe and ``--set`` say by themselves."""
    _selection(advice, task, splits)
    _overlaps(advice, task, splits)
    prompt = base.prompt.length
    if task.is_written:
        prompt = advice.say(
            "prompt.length", 32, "as configs/hours_gemma.json: writing asks more of a prompt than a class does"
        )
        advice.say(
            "optimizer.relative",
            True,
            "the rate is a share of the backbone's own keys and values, whatever their scale",
        )
        advice.say("optimizer.lr", 0.01, "1 % of them a step, as all run files of configs/ that write texts have")
    if described is None:
        advice.notes.append(
            f"{base.backbone.path} is neither a folder here nor in the hub's cache, so lengths were not measured and"
            " data.max_length is the default; the same command with --force measures them once it is there"
        )
    else:
        choose_lengths(advice, task, splits, described, base, prompt)
        choose_also(advice, described, base)
    _duration(advice, task, splits["train"].total, base)
    if not task.is_written and "method" not in advice.given:
        members = [{"method": "deep_prompt"}, {"method": "head"}]
        advice.say("fleet.members", members, "a head alone beside the prompt shows what the prompt brings")


def _selection(advice: Advice, task: Task, splits: Mapping[str, Split]) -> None:
    """What the best prompt is selected by: the metric, and the rows."""
    by_kind = {"classification": _classes, "tagging": _tags, "span": _answers, "generation": _targets}
    if task.kind in by_kind:
        by_kind[task.kind](advice, task, splits)
    elif task.kind == "regression":
        advice.say("task.metric", "pearson", "how well the numbers lie on a line; spearman asks for their order alone")
    for name, split in splits.items():
        if not split.is_whole:
            advice.notes.append(f"{name}: the first {len(split.rows):,} of {split.total:,} rows were looked at")
    total = splits["train"].total
    if "dev" in splits:
        return
    share = 0.2 if total < 1000 else 0.1
    advice.say(
        "data.held_out",
        share,
        f"there is no dev split: {round(share * total)} of {total} training rows select, the same in every run",
    )


def _counts(task: Task, split: Split) -> Counter[str]:
    """How often each label stands in a split; an unlabelled row counts for none."""
    names = (label_name(row.get(task.label_column)) for _, row in own_rows(task, split.rows))
    return Counter(name for name in names if name is not None)


def _classes(advice: Advice, task: Task, splits: Mapping[str, Split]) -> None:
    train = _counts(task, splits["train"])
    names = find_kind(task.kind).collect_labels(task, splits["train"].rows) if task.labels is None else task.labels
    known = {label_name(name) for name in names}
    for split in ("dev", "test"):
        if split not in splits or task.labels is not None or not splits["train"].is_whole:
            continue
        unseen = {name: n for name, n in _counts(task, splits[split]).items() if name not in known and name != "-1"}
        if unseen:
            said = ", ".join(f"{name!r} ({n} rows)" for name, n in unseen.items())
            listed = ", ".join(f'"{name}"' for name in (*names, *unseen))
            raise UserError(
                f"{splits[split].file}: {split} has labels that train has not, of which nothing can be learnt: {said};"
                f" correct the data, or count such rows as wrong answers with --set 'task.labels=[{listed}]'"
            )
    most, least = train.most_common()[0], train.most_common()[-1]
    said = f"{most[0]!r} has {most[1]} rows, {least[0]!r} has {least[1]}"
    if most[1] >= 3 * least[1]:
        advice.say(
            "task.metric", "macro_f1", f"classes are uneven ({said}): accuracy would reward the frequent ones alone"
        )
    else:
        advice.say("task.metric", "accuracy", f"no class is rare ({said})")
    if "dev" not in splits and least[1] < 20 and task.labels is None and splits["train"].is_whole:
        advice.say(
            "task.labels",
            list(names),
            "all are listed, for rows that are held out may take the last ones of a rare class",
        )


def _tags(advice: Advice, task: Task, splits: Mapping[str, Split]) -> None:
    labels = task.labels or find_kind(task.kind).collect_labels(task, splits["train"].rows)
    odd = next((label for label in labels if "*" in label), None)
    if odd is not None:
        raise UserError(
            f"{splits['train'].file}: {odd!r} is a bracket of the CoNLL shared tasks and no tag of one word; name the column of"
            " the tags with --set task.tag_column=N (from 0), or write B-, I- and O; roles have tasks of their own"
            " (conll05, conll12, propbank)"
        )
    own = task.for_labels(labels)
    shown = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    why = "tags name spans (B-, I-, O)" if own.selects_by != "accuracy" else "tags name no spans"
    advice.say("task.metric", own.selects_by, f"{why}; {len(labels)} of them: {shown}")
    rows = own_rows(task, splits["dev"].rows) if "dev" in splits else ()
    written = [row.get(task.label_column) or [] for _, row in rows]
    tags = {tag for own in written for tag in to_iob2([tag for tag in own if isinstance(tag, str)])}
    unseen = sorted(tags - {*labels, OUTSIDE})
    if unseen and task.labels is None and splits["train"].is_whole:
        advice.notes.append(
            f"tags {', '.join(unseen[:8])} stand in dev and not in train: they cannot be learnt, and count as missed"
        )


def _answers(advice: Advice, task: Task, splits: Mapping[str, Split]) -> None:
    values = [row.get(task.label_column) for split in splits.values() for _, row in split.rows]
    empty = sum(value == [] or (isinstance(value, dict) and value.get("text") == []) for value in values)
    why = f"{empty} of {len(values)} questions have no answer" if empty else "every question has an answer"
    advice.say("task.has_null", empty > 0, why)


def _targets(advice: Advice, task: Task, splits: Mapping[str, Split]) -> None:
    values = [row.get(task.label_column) for _, row in own_rows(task, splits["train"].rows)]
    firsts = [value[0] if isinstance(value, list) and value else value for value in values]
    words = statistics.fmean([len(value.split()) for value in firsts if isinstance(value, str)] or [0.0])
    said = f"targets have {words:.0f} words on average"
    if words <= 3:
        advice.say("task.metrics", ["exact_match", "f1"], f"{said}: they are right or wrong")
    elif importlib.util.find_spec("rouge_score") is not None and words >= 8:
        advice.say("task.metrics", ["rouge_l", "f1"], f"{said}: ROUGE-L asks for the order of words too")
    else:
        advice.say("task.metrics", ["f1", "exact_match"], f"{said}: shared words count")


def _texts(task: Task, split: Split) -> Iterator[tuple[str, str | None]]:
    """What stands for the text of each example, and its label."""
    build = template_of(task, None)
    for where, row in own_rows(task, split.rows):
        yield repr(sequences(task, where, build, row)), label_name(row.get(task.label_column))


def _overlaps(advice: Advice, task: Task, splits: Mapping[str, Split]) -> None:
    """Texts that stand twice: in two splits, or with two labels."""
    labels: dict[str, set[str | None]] = {}
    for text, label in _texts(task, splits["train"]):
        labels.setdefault(text, set()).add(label)
    for name, split in splits.items():
        found = [text in labels for text, _ in _texts(task, split)] if name != "train" else []
        if any(found):
            advice.notes.append(
                f"{sum(found)} of {len(found)} examples of {name} stand in train too, word for word: scores on them are of"
                " memory; remove them from one of the two"
            )
    torn = sum(len(own) > 1 for own in labels.values()) if task.kind == "classification" else 0
    if torn:
        advice.notes.append(
            f"{torn} texts of train stand there with more than one label; at most one of them can be learnt"
        )


def _duration(advice: Advice, task: Task, rows: int, base: RunFile) -> None:
    """Rows in a step, and passes over them."""
    rows -= round(float(advice.settings.get("data.held_out", base.data.held_out)) * rows)
    is_tokens = bool(base.train.also)
    group = "tokens" if is_tokens else "generation" if task.is_written else "texts"
    if is_tokens:
        size, why = base.train.batch_size, "the recipe's"
    elif task.is_written or rows < 100:
        size, why = 8, "texts to write are long" if task.is_written else f"few rows ({rows}) give more steps so"
    else:
        size, why = 16, "as the quick start, whose rates the recipe has"
    size = advice.say("train.batch_size", size, why)
    wanted, most = STEPS[group], 10 if task.is_written else 30
    epochs = min(most, max(2, round(wanted * size / max(1, rows))))
    steps = -(-rows // size) * epochs
    advice.say(
        "train.epochs", epochs, f"{steps} steps on {rows} rows; a first run wants about {wanted}, of 2 to {most} passes"
    )
