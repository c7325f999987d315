"""From exported prompts to a folder with a graph, a tokenizer, and what a client needs to know, in JSON.

``model.onnx`` takes ``input_ids`` and ``attention_mask`` [rows, length], ``token_type_ids`` where the backbone looks at them, and
``prompt_ids`` [rows], all int64, and gives ``logits`` [rows, outputs], or [rows, length, outputs] where every token is asked.
Nothing is left of it where onnxruntime and torch differ.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim
from transformers import PreTrainedTokenizerBase

from model_parallel.grid import Grid
from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone, load_backbone
from prompt_tuning.data.stream import open_source
from prompt_tuning.errors import UserError, reason
from prompt_tuning.kinds import find_kind, span
from prompt_tuning.onnx.check import check
from prompt_tuning.onnx.eight_bits import BLOCK, agreement, write_int8
from prompt_tuning.onnx.graph import Graph, padded_attention, takes_types
from prompt_tuning.onnx.texts import Cut, text_forms, write_tokenizer
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.prompt.export import ExportedPrompt
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.storage.atomic import new_folder, write_json
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.tokenise import word_lead

FORMAT = 1
OPSET = 20
ABOUT = "model.json"
KINDS = ("classification", "regression", "choice", "tagging", "span")
ONE_FILE = 1_900_000_000
"""Bytes of weights from which on they stand in a file of their own: one ONNX file holds at most 2 GiB."""
logger = logging.getLogger(__name__)


def write_onnx(
    folder: Path, prompts: Mapping[str, ExportedPrompt], backbone: str | None = None, int8: str | None = None
) -> list[str]:
    """Write some prompts, by name, and their backbone as one graph, in float32. Returns what to say of it, a sentence each.

    ``backbone``: another path to it. ``int8``: a file of rows, as for ``predict``; the weights are then written as 8-bit integers
    too, and the file's answers compared. Raises :class:`UserError` for what has no place in the graph, and where onnxruntime's
    logits are off.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise UserError("--format onnx needs extra packages: pip install 'promptfleet[onnx]'") from None
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT).is_file():
        raise UserError(
            f"--output {folder}: holds other files, which would be replaced; give a folder that is new or empty"
        )
    for name, exported in prompts.items():
        _check_fits(name, exported)
    _check_alike(prompts)
    model = _attach(prompts, backbone)
    rows = {}
    if int8 is not None:  # before anything that takes long
        for place, (name, exported) in enumerate(prompts.items()):
            with open_source(int8, exported.task) as source:
                features = model.question(place, list(source.rows())).features
            if features is None:
                raise UserError(f"--int8 {int8}: no rows there, over which answers could be compared; give some texts")
            rows[name] = features
    has_types = takes_types(model.backbone)
    about: dict[str, Any] = {"format": FORMAT, "opset": OPSET, "versions": _versions()}
    with new_folder(folder) as target:
        file, final = target / "model.onnx", folder / "model.onnx"
        write_tokenizer(target / "tokenizer.json", model.backbone.tokenizer, {Cut.of(own) for own in model.prompts})
        _trace(file, model, has_types)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        about["checked"] = check(session, model, has_types, final)
        off, count, several = about["checked"]["largest_difference"], about["checked"]["rows"], "s" * (len(prompts) > 1)
        said = [f"{final}: {len(prompts)} prompt{several}; logits within {off:g} of torch's on {count} rows"]
        if int8 is not None:
            write_int8(file, target / "model.int8.onnx", not (target / "model.onnx.data").exists())
            about["int8"] = {
                "block": BLOCK,
                "rows_of": Path(int8).name,
                **agreement(target / "model.int8.onnx", model, rows),
            }
            said += _of_int8(folder / "model.int8.onnx", about["int8"])
        about |= _described(model, list(prompts))
        write_json(target / ABOUT, about)
    return said


def _check_fits(name: str, exported: ExportedPrompt) -> None:
    """Raise :class:`UserError` for a prompt that the graph would answer otherwise."""
    prompt, task = exported.prompt, exported.task
    quantize = exported.manifest["backbone"].get("quantize")
    reasons = {
        f"task {task.name!r} is of kind {task.kind}, and a graph answers {', '.join(KINDS)}": task.kind not in KINDS,
        f"template {exported.encoding.template!r}: the language model scores candidates, and a graph has heads alone": isinstance(
            prompt.head, LanguageHead
        ),
        "method 'shallow_prompt': a graph has no place for vectors among the words": prompt.inputs is not None,
        "train.also: a graph has no place for each prompt's own biases and norms": prompt.beside is not None,
        "method 'lora': its changed layers belong to one prompt, and a graph's to all": prompt.lora is not None,
        f"backbone.quantize {quantize!r}: a graph has the weights as they were before, and would answer otherwise": quantize
        is not None,
    }
    for why, holds in reasons.items():
        if holds:
            raise UserError(f"{name}: {why}; it cannot be written for ONNX (--member chooses others)")


def _check_alike(prompts: Mapping[str, ExportedPrompt]) -> None:
    """Raise :class:`UserError` where some prompts answer texts and some tokens."""
    by_shape = {find_kind(exported.task.kind).per_token: name for name, exported in prompts.items()}
    if len(by_shape) > 1:
        raise UserError(
            f"{by_shape[False]} answers texts and {by_shape[True]} their tokens, and a graph has logits of one shape; write them"
            " into two folders (--member chooses)"
        )


def _attach(prompts: Mapping[str, ExportedPrompt], path: str | None) -> AttachedPrompts:
    """The prompts on their backbone, in float32 on the processor. Raises :class:`UserError`."""
    several = list(prompts.values())
    recorded = several[0].manifest["backbone"]
    section = BackboneSection(
        path=path or several[0].backbone_path,
        revision=recorded["revision"] if path is None else None,
        attention=recorded["attention"],
    )
    backbone = load_backbone(section, Grid(device=torch.device("cpu")))
    described = backbone.description
    attends = [type(module).__module__ for module in backbone.family.attention_modules(backbone.model)]
    if described.has_encoder or any(name.startswith("prompt_tuning.") for name in attends):
        raise UserError(
            f"backbone.path={section.path}: {described.config.model_type} attends in a way of its own, of which no graph is made;"
            " use a backbone such as BERT, RoBERTa or LLaMA for ONNX"
        )
    if recorded["dtype"] != "float32":
        logger.warning(
            "trained with backbone.dtype %s; the graph computes in float32, so that answers may differ by its rounding",
            recorded["dtype"],
        )
    return AttachedPrompts(backbone, several)


def _trace(file: Path, model: AttachedPrompts, has_types: bool) -> None:
    """Write the graph, with rows and lengths of any number. Raises :class:`UserError` where torch cannot."""
    backbone = model.backbone
    graph = Graph(backbone, [own.prompt for own in model.prompts]).eval()
    # Two or more of everything: what is 1 while tracing is taken to be 1 for ever.
    ids = torch.arange(15).view(3, 5) % backbone.model.config.vocab_size
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])
    inputs = {"input_ids": ids, "attention_mask": mask, "prompt_ids": torch.arange(3) % len(model.prompts)}
    if has_types:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    rows, length = Dim("rows", min=1), Dim("length", min=1)
    shapes = {name: {0: rows} if name == "prompt_ids" else {0: rows, 1: length} for name in inputs}
    size = sum(tensor.nbytes for tensor in graph.state_dict().values())
    try:
        with torch.no_grad(), padded_attention(backbone), _quiet("torch.onnx"):
            torch.onnx.export(
                graph,
                (),
                file,
                kwargs=inputs,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                external_data=size > ONE_FILE,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"backbone.path={backbone.path}: torch makes no ONNX graph of {backbone.model.config.model_type}"
            f" ({reason(error)}); use another backbone for ONNX"
        ) from error


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Nothing but errors of a logger, no warnings, and no talk on standard output."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import onnxscript

    return {module.__name__: module.__version__ for module in (torch, onnx, onnxscript, onnxruntime)}


def _of_int8(file: Path, about: dict[str, Any]) -> list[str]:
    """How far the answers of 8-bit weights are from torch's, prompt by prompt."""
    found = [f"{file}: weights as 8-bit integers, beside torch on the rows of {about['rows_of']}:"]
    for name, own in about["prompts"].items():
        same = f"{own['same_answers']:.1%} of {own['answers']} answers equal, " if "same_answers" in own else ""
        found.append(f"  {name}: {same}logits off by up to {own['largest_difference']:g}")
    return found


def _described(model: AttachedPrompts, names: list[str]) -> dict[str, Any]:
    """What a client needs to know."""
    backbone: Backbone = model.backbone
    return {
        "backbone": {
            "path": backbone.path,
            "model_type": backbone.model.config.model_type,
            "fingerprint": backbone.fingerprint,
        },
        "truncation_side": backbone.tokenizer.truncation_side,
        "prompts": [
            {
                "name": name,
                "task": task.name,
                "kind": task.kind,
                "labels": list(exported.labels),
                "max_length": exported.encoding.max_length,
                "template": exported.encoding.template,
                "texts": text_forms(task, exported.encoding),
                **_of_kind(task, exported, backbone.tokenizer),
            }
            for name, exported, task in zip(names, model.prompts, model.tasks, strict=True)
        ],
    }


def _of_kind(task: Task, exported: ExportedPrompt, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a client needs beside, to find words' tokens or the best answer."""
    if task.kind == "tagging":
        return {"lead": word_lead(tokenizer)}
    if task.kind == "span":
        return {
            "stride": exported.encoding.stride,
            "question_tokens": span.question_room(tokenizer, exported.encoding.max_length),
            "has_null": task.has_null,
            "n_best": span.N_BEST,
            "answer_tokens": span.MAX_ANSWER_TOKENS,
        }
    return {}
