"""A tiny decoder whose tokenizer knows line breaks, a document for it, and rows with a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from model_parallel.grid import Grid
from prompt_tuning.backbone.load import load_backbone
from prompt_tuning.documents.context import context_ids, context_prompt
from prompt_tuning.documents.questions import BEGINNINGS
from prompt_tuning.documents.synthesise import Asking, Question, Teaching
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.passages import read_document
from prompt_tuning.tokens.recipe import Encoding
from tests.support.fleets import open_fleet
from tests.support.tiny import SPECIAL, WORDS, make_language_backbone, run_json, write_jsonl

KNOWN = [*WORDS[:53], "\n", "Question:", "Answer:", "Who", "Why", "?", "goes"]
"""As many words as other tiny backbones know."""
LENGTHS = Encoding(24, max_target_length=8)


def make_reader(folder: Path, model_type: str = "llama", seed: int = 0, **changes: Any) -> Path:
    """A tiny language model that reads lines: a line break and a question mark are tokens of their own."""
    make_language_backbone(folder, model_type, seed, **changes)
    vocabulary = {name: i for i, name in enumerate([*SPECIAL, *KNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split(Regex(r"\n|\?"), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", vocabulary["[CLS]"])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        eos_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    return folder


def make_document(file: Path, seed: int = 1, paragraphs: int = 3) -> Path:
    """Paragraphs of three sentences of 5 to 9 words."""
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(paragraphs):
        sentences = []
        for length in torch.randint(4, 9, (3,), generator=generator).tolist():
            words = [WORDS[i] for i in torch.randint(0, 50, (length,), generator=generator).tolist()]
            sentences.append(" ".join(words) + " goes.")
        texts.append(" ".join(sentences))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    return file


def make_questions(folder: Path, count: int = 5, seed: int = 7, splits: tuple[str, ...] = ("dev", "test")) -> Path:
    """Questions and answers of a few words, as people write them."""
    generator = torch.Generator().manual_seed(seed)
    for split in splits:
        rows = []
        for i in range(count):
            words = [WORDS[j] for j in torch.randint(0, 50, (2 + i % 4,), generator=generator).tolist()]
            rows.append({"question": f"Who {words[0]} ?", "answer": " ".join(words)})
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


def task_of(document: Path) -> dict[str, Any]:
    """A run file's task."""
    return {"kind": "document", "document": str(document)}


def document_run(backbone: Path, data: Path, document: Path, /, **sections: Any) -> dict[str, Any]:
    """A small run file of a document's task in float64."""
    own = {"data": {"max_length": 24, "max_target_length": 8}, "prompt": {"length": 5}}
    return run_json(backbone, data, **{**own, **sections, "task": task_of(document)})


def teaching(backbone: Any, document: Path, passage: str) -> Teaching:
    """The model with a passage in its context."""
    task = find_task(task_of(document))
    return Teaching(backbone, task, LENGTHS, context_prompt(backbone, context_ids(backbone, passage)))


def taught_rows(backbone: Any, document: Path, count: int = 11, seed: int = 3) -> list[dict[str, Any]]:
    """Training rows of unequal lengths whose teacher has read the whole document."""
    generator = torch.Generator().manual_seed(seed)
    found = read_document(str(document))
    teacher = teaching(backbone, document, found.text)
    pairs = []
    for i in range(count):
        words = [WORDS[j] for j in torch.randint(0, 50, (2 + (i * 3) % 5,), generator=generator).tolist()]
        pairs.append((Question("facts", f"Who {' '.join(words[:2])} ?"), " ".join(words)))
    lessons = teacher.lessons(pairs)
    return [
        {"question": own.text, "answer": answer, "document": found.digest, "teacher": lesson}
        for (own, answer), lesson in zip(pairs, lessons, strict=True)
    ]


ASKING = Asking(questions=4, passage_tokens=20, seed=0, beginnings=BEGINNINGS)


def open_backbone(folder: Path) -> Any:
    """A reader with its language head, float64."""
    return load_backbone(BackboneSection(path=str(folder), dtype="float64"), Grid(), language=True)


def make_place(folder: Path) -> Path:
    """A tiny LLaMA in `backbone`, a `document.txt`, and in `data` rows that a teacher has answered beside people's questions."""
    make_reader(folder / "backbone")
    make_document(folder / "document.txt")
    rows = taught_rows(open_backbone(folder / "backbone"), folder / "document.txt")
    write_jsonl(make_questions(folder / "data") / "train.jsonl", rows)
    return folder


def open_document_fleet(place: Path, **sections: Any) -> Any:
    """One member that learns the document of a place."""
    return open_fleet(document_run(place / "backbone", place / "data", place / "document.txt", **sections))
