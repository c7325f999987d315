"""Adapters of random numbers and their logits, made by Adapters itself: run by a Python that has it, with a folder.

Imports nothing of this project. The folder holds backbones and ``rows.json`` (ids and mask, padded); beside each adapter's folder
its logits are written.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers

CASES = {
    "two_layers": ("AutoAdapterModel", {}, "classification", 2),
    "one_layer": ("AutoAdapterModel", {}, "classification", 1),
    "tags": ("AutoAdapterModel", {}, "tagging", 1),
    "class_some_layers": ("AutoModelForSequenceClassification", {"leave_out": [0]}, None, 0),
    "class_projection": ("AutoModelForSequenceClassification", {"flat": False, "bottleneck_size": 9}, None, 0),
    "class_ejected": ("AutoModelForSequenceClassification", {"flat": False}, "eject", 0),
    "class_tags": ("AutoModelForTokenClassification", {}, None, 0),
}
"""The class, the prefix's settings, and the head that is added, with its layers; or what is done before it is saved."""


@torch.no_grad()
def make(root: Path, family: str, name: str, rows: dict[str, torch.Tensor]) -> None:
    import adapters

    cls, settings, head, layers = CASES[name]
    if cls == "AutoAdapterModel":
        model = adapters.AutoAdapterModel.from_pretrained(root / family)
    else:
        model = getattr(transformers, cls).from_pretrained(root / family, num_labels=3)
        adapters.init(model)
    model.add_adapter("x", adapters.PrefixTuningConfig(**{"prefix_length": 4, "flat": True, **settings}))
    if head == "classification":
        model.add_classification_head("x", num_labels=3, layers=layers, id2label={0: "b", 1: "c", 2: "a"})
    elif head == "tagging":
        model.add_tagging_head("x", num_labels=3, id2label={0: "O", 1: "B-a", 2: "I-a"})
    model.set_active_adapters("x")
    torch.manual_seed(3)
    for parameter_name, parameter in model.named_parameters():
        if "prefix_tunings" in parameter_name or parameter_name.startswith(("heads", "classifier")):
            parameter.copy_(torch.randn_like(parameter))
    if head == "eject":
        model.eject_prefix_tuning("x")
    logits = model.eval()(**rows).logits
    folder = root / f"{family}-{name}"
    model.save_adapter(str(folder), "x", with_head=True)
    (root / f"{folder.name}.json").write_text(json.dumps(logits.tolist()))


def main() -> None:
    root = Path(sys.argv[1])
    warnings.filterwarnings("ignore")
    rows = {key: torch.tensor(value) for key, value in json.loads((root / "rows.json").read_text()).items()}
    for family in ("bert", "roberta"):
        for name in CASES:
            make(root, family, name, rows)


if __name__ == "__main__":
    main()
