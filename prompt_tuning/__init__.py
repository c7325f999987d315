"""Deep prompts (P-tuning v2) for frozen transformer backbones: prompts, tasks and training.

The Python entry points are :func:`load_prompt` and :func:`attach`; everything else is reached through run files.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_tuning.predict import attach
    from prompt_tuning.prompt.export import load_prompt

__all__ = ["attach", "load_prompt"]


def __getattr__(name: str) -> Any:
    # Deferred, so that reading a run file does not import torch.
    if name in __all__:
        from prompt_tuning import predict
        from prompt_tuning.prompt import export

        return {"attach": predict.attach, "load_prompt": export.load_prompt}[name]
    raise AttributeError(name)
