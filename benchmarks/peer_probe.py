"""What PEFT or Adapters makes of deep prompts, case by case: a process of peers.py, in any environment that has the library.

    python benchmarks/peer_probe.py peft cases.json found.json

Imports nothing of this project, because Adapters needs another version of transformers. Every case names the folder of a
backbone and holds its rows; what is found of it is the error that the library raises, or numbers that were measured.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

LENGTH, STEPS, RATE = 4, 30, 0.02
FIRST, SECOND = "default", "second"

Model = Any
Case = dict[str, Any]


class Peft:
    """PEFT's PrefixTuning, as its documentation puts it on a model."""

    def put(self, model: Model, case: Case) -> Model:
        from peft import get_peft_model

        if case["checkpointing"]:
            checkpoint(model)
        return get_peft_model(model, self._config(case))

    def _config(self, case: Case) -> Any:
        from peft import PrefixTuningConfig

        kind = "SEQ_2_SEQ_LM" if case["is_encoder_of_two"] else "SEQ_CLS"
        return PrefixTuningConfig(task_type=kind, num_virtual_tokens=LENGTH)

    def add(self, model: Model, case: Case) -> None:
        model.add_adapter(SECOND, self._config(case))

    def choose(self, model: Model, name: str) -> None:
        model.set_adapter(name)

    def prefixes(self, model: Model) -> list[nn.Parameter]:
        return [encoder.embedding.weight for encoder in model.prompt_encoder.values()]

    @contextmanager
    def without(self, model: Model) -> Iterator[Model]:
        """The model without its prefix; its own ``disable_adapter`` fails on encoders."""
        yield model.get_base_model()

    def mixed(self, model: Model, case: Case, names: list[str]) -> Tensor:
        return logits(model, case, adapter_names=names)


class Adapters:
    """Adapters' prefix tuning without reparameterisation, the default attention of transformers."""

    def put(self, model: Model, case: Case) -> Model:
        import adapters

        adapters.init(model)
        if case["checkpointing"]:
            checkpoint(model)  # which it replaces by its own
        self._add(model, FIRST)
        model.train_adapter(FIRST)
        return model

    def _add(self, model: Model, name: str) -> None:
        from adapters import PrefixTuningConfig

        model.add_adapter(name, PrefixTuningConfig(prefix_length=LENGTH, flat=True))

    def add(self, model: Model, case: Case) -> None:
        self._add(model, SECOND)

    def choose(self, model: Model, name: str) -> None:
        model.set_active_adapters(name)

    def prefixes(self, model: Model) -> list[nn.Parameter]:
        return [parameter for name, parameter in model.named_parameters() if "prefix_tunings" in name]

    @contextmanager
    def without(self, model: Model) -> Iterator[Model]:
        model.set_active_adapters(None)
        yield model
        model.set_active_adapters(FIRST)

    def mixed(self, model: Model, case: Case, names: list[str]) -> Tensor:
        from adapters.composition import BatchSplit

        model.set_active_adapters(BatchSplit(FIRST, SECOND, batch_sizes=[names.count(FIRST), names.count(SECOND)]))
        return logits(model, case)


def base(case: Case) -> Model:
    """A sequence classifier, or a model of two halves, over the folder's weights."""
    torch.manual_seed(0)
    if not case["is_encoder_of_two"]:
        return transformers.AutoModelForSequenceClassification.from_pretrained(case["folder"], num_labels=2)
    config = transformers.AutoConfig.from_pretrained(case["folder"])
    config.decoder_start_token_id = 0  # which files of a base model do not say
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(case["folder"], config=config)


def drop_nothing(model: Model) -> None:
    """Switch dropout off, in modules and in those that keep a rate for a function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0


def checkpoint(model: Model) -> None:
    """Let activations be recomputed in the backward."""
    model.gradient_checkpointing_enable({"use_reentrant": False})


def logits(model: Model, case: Case, **named: Any) -> Tensor:
    """[rows, 2] of a classifier; else two numbers of the encoder's last hidden states, averaged over a text's tokens."""
    ids, mask = torch.tensor(case["input_ids"]), torch.tensor(case["attention_mask"])
    if not case["is_encoder_of_two"]:
        return model(input_ids=ids, attention_mask=mask, **named).logits
    hidden = model(input_ids=ids, attention_mask=mask, labels=ids, **named).encoder_last_hidden_state
    return (hidden * mask[:, :, None]).sum(1)[:, :2] / mask.sum(1, keepdim=True)


def train(library: Any, model: Model, case: Case) -> dict[str, float]:
    """First and last loss, norm of the prefixes' first gradient, and how much they change the logits in the end."""
    labels, trained = torch.tensor(case["labels"]), [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    losses, gradient = [], 0.0
    model.train()
    for step in range(STEPS):
        loss = cross_entropy(logits(model, case), labels)
        losses.append(loss.item())
        if not loss.requires_grad:
            break
        loss.backward()
        if step == 0:
            norms = [p.grad.norm() for p in library.prefixes(model) if p.grad is not None]
            gradient = torch.stack(norms).norm().item() if norms else 0.0
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        seen = logits(model, case)
        with library.without(model) as bare:
            effect = (logits(bare, case) - seen).abs().max().item()
    return {"first_loss": losses[0], "last_loss": losses[-1], "gradient": gradient, "effect": effect}


@torch.no_grad()
def mix(library: Any, model: Model, case: Case) -> dict[str, float]:
    """How far rows of a second prompt, in a batch with rows of a first, are from their own prompt's answers alone and from
    the first's."""
    library.add(model, case)
    for parameter in library.prefixes(model):
        parameter.normal_()
    model.eval()
    alone = {}
    for name in (SECOND, FIRST):
        library.choose(model, name)
        alone[name] = logits(model, case)
    half = len(case["labels"]) // 2
    found = library.mixed(model, case, [FIRST] * half + [SECOND] * (len(case["labels"]) - half))
    return {name: (found[half:] - alone[name][half:]).abs().max().item() for name in (FIRST, SECOND)}


def probe(library: Any, case: Case) -> dict[str, Any]:
    """What is found of one case."""
    try:
        model = library.put(base(case), case)
        drop_nothing(model)
        return mix(library, model, case) if case["is_mixed"] else train(library, model, case)
    except Exception as error:  # whatever it is, it is what a user gets
        return {"raised": f"{type(error).__name__}: {error}"}


def main() -> None:
    name, cases, output = sys.argv[1:]
    importlib.import_module(name)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    library = {"peft": Peft, "adapters": Adapters}[name]()
    found = [probe(library, case) for case in json.loads(Path(cases).read_text(encoding="utf-8"))]
    versions = {package: version(package) for package in (name, "transformers", "torch")}
    Path(output).write_text(json.dumps({"versions": versions, "found": found}), encoding="utf-8")


if __name__ == "__main__":
    main()
