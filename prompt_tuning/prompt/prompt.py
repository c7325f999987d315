"""One member's prompt: everything trained for one task, and what must travel with it."""

from __future__ import annotations

from torch import Tensor, nn

from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.prompt.beside import Beside
from prompt_tuning.prompt.head import Head
from prompt_tuning.prompt.prefix import Prefix


class Prompt(nn.Module):
    """Everything trained for one task, and what must travel with it: a prefix or input prompts (or neither), a head, and what
    is trained beside them. Or, for comparison, LoRA's differences in the place of a prefix.
    """

    def __init__(
        self,
        head: Head | LanguageHead,
        prefix: Prefix | None = None,
        inputs: Tensor | None = None,
        positions: str = "after_prefix",
        dropout: float = 0.0,
        head_dropout: float = 0.0,
        beside: Beside | None = None,
        lora: nn.ParameterDict | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.prefix = prefix
        self.beside = beside
        self.inputs = None if inputs is None else nn.Parameter(inputs)
        self.lora = lora
        self.positions = positions
        self.dropout = dropout
        self.head_dropout = head_dropout

    @property
    def length(self) -> int:
        """Prompt tokens P; 0 without prompt."""
        if self.prefix is not None:
            return self.prefix.length
        return 0 if self.inputs is None else len(self.inputs)

    @property
    def text_start(self) -> int:
        """Position of the first text token behind a prefix."""
        return self.length if self.prefix is not None and self.positions == "after_prefix" else 0

    @property
    def first_layer(self) -> int:
        """Lowest layer that its gradient reaches; -1: the word embeddings."""
        if self.inputs is not None:
            return -1
        found = [] if self.beside is None else [self.beside.first_layer]
        if self.prefix is not None:
            found.append(0 if self.prefix.layers is None else min(self.prefix.layers))
        return min(found, default=-1)

    @property
    def levels(self) -> tuple[int, ...] | None:
        """Those of the layers that its prefix has; None: all."""
        return None if self.prefix is None else self.prefix.layers

    @property
    def reaches_backbone(self) -> bool:
        """Whether its gradient flows through the backbone."""
        return self.length > 0 or self.beside is not None or self.lora is not None

    @staticmethod
    def is_split(name: str) -> bool:
        """Whether a tensor rank sees only its own heads' part of the gradient of the trained tensor ``name``."""
        return name.startswith(("prefix.", "beside."))

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and tensors that the optimizer moves."""
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]
