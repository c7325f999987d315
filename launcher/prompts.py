"""An exported prompt and its backbone, for the verbs that use one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_tuning.predict import AttachedPrompts
    from prompt_tuning.prompt.export import ExportedPrompt


def attach_prompt(exported: ExportedPrompt, backbone: str | None) -> AttachedPrompts:
    """A prompt on its own backbone, or on another path to it, without the libraries' progress bars."""
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.predict import attach

    quiet_libraries()
    return attach(exported, backbone)
