"""Deep prompts (P-tuning v2) for frozen transformer backbones: prompts, tasks and training.

The Python entry points are :func:`train`, :func:`load_prompt` and :func:`attach`; everything else is reached through run files.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_tuning.predict import attach
    from prompt_tuning.prompt.export import load_prompt
    from prompt_tuning.python import train

_HOMES = {"attach": "predict", "load_prompt": "prompt.export", "train": "python"}

__all__ = ["attach", "load_prompt", "train"]


def __getattr__(name: str) -> Any:
    # Deferred, so that reading a run file does not import torch.
    if name in _HOMES:
        return getattr(import_module(f"prompt_tuning.{_HOMES[name]}"), name)
    raise AttributeError(name)
