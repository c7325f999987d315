"""The run file as a whole.

Importing this module does not import torch, so a file is checked in milliseconds.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from prompt_tuning.errors import UserError
from prompt_tuning.messages import show
from prompt_tuning.section import FOLDER_NAME, Section
from prompt_tuning.settings.changes import LAUNCH, PARALLEL, PEOPLE
from prompt_tuning.settings.decode import DecodeSection
from prompt_tuning.settings.prompt import PromptSection
from prompt_tuning.settings.sections import (
    BackboneSection,
    DataSection,
    DeepSpeedSection,
    FleetSection,
    HeadSection,
    LaunchSection,
    OptimizerSection,
    ParallelSection,
    TrainSection,
)

if TYPE_CHECKING:
    from prompt_tuning.tasks.types import Task


class Published(Section):
    """A published result of a run file's settings."""

    metric: str = Field(description="Metric of the published number.")
    split: str = Field("dev", description="Split it was measured on: dev, test or test/<name>.")
    value: float = Field(description="Published result, in per cent.")
    by: Literal["paper", "rerun"] = Field(description="paper: P-tuning v2's; rerun: of its released code.")
    source: str = Field(description="Where the number stands.")


Method = Literal["deep_prompt", "shallow_prompt", "head", "lora", "full", "none"]


class RunFile(Section):
    """One run: an experiment (what changes the numbers), where it is parallel, and where results go."""

    schema_: str | None = Field(
        None, alias="$schema", description="Path of the JSON Schema, for editors.", json_schema_extra=PEOPLE
    )
    name: str | None = Field(
        None,
        pattern=FOLDER_NAME,
        max_length=100,
        description="Name of the run; None: the file's name.",
        json_schema_extra=LAUNCH,
    )
    description: str | None = Field(None, description="One line for people.", json_schema_extra=PEOPLE)
    published: Literal[False] | list[Published] | None = Field(
        None, description="Published results of these settings; false: settings of our own.", json_schema_extra=PEOPLE
    )
    task: str | dict[str, Any] = Field(description="Name of a task, or an object with `kind` for one's own data.")
    method: Method = Field(
        "deep_prompt",
        description="What is trained: prefixes, input prompts, the head, LoRA (extra `lora`), everything; none asks the language model.",
    )
    backbone: BackboneSection
    data: DataSection = DataSection()
    prompt: PromptSection = PromptSection()
    decode: DecodeSection = DecodeSection()
    head: HeadSection = HeadSection()
    optimizer: OptimizerSection = OptimizerSection()
    train: TrainSection = TrainSection()
    parallel: ParallelSection = Field(ParallelSection(), json_schema_extra=PARALLEL)
    deepspeed: DeepSpeedSection = Field(DeepSpeedSection(), json_schema_extra=PARALLEL)
    launch: LaunchSection = Field(LaunchSection(), json_schema_extra=LAUNCH)
    fleet: FleetSection | None = Field(
        None, description="Several members trained together; None: one.", json_schema_extra=LAUNCH
    )
    output: str | None = Field(
        None, min_length=1, description="Run folder; None: runs/<name>.", json_schema_extra=LAUNCH
    )

    @property
    def is_cloze(self) -> bool:
        """Whether the language model answers, by candidates in a gap, instead of a head."""
        from prompt_tuning.tasks.find import find_task

        return self.data.template in find_task(self.task).cloze

    @property
    def is_written(self) -> bool:
        """Whether the language model writes the answer, a text."""
        from prompt_tuning.tasks.find import find_task

        return find_task(self.task).is_written

    @property
    def asks_language_model(self) -> bool:
        """Whether the backbone's language head answers, so that there is none to train."""
        return self.is_cloze or self.is_written

    @property
    def asking(self) -> tuple[str | None, int, int] | None:
        """What a model that nothing has trained reads before each source: a text, and so many rows that a seed draws."""
        prompt = self.prompt
        if self.method != "none" or not (prompt.text or prompt.shots):
            return None
        return prompt.text, prompt.shots, self.train.seed if prompt.shots else 0

    @model_validator(mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        """Answers about documents, and of a model that has not learned to end them, are lines, which end at a line break unless
        ``decode.stop`` says otherwise."""
        from prompt_tuning.tasks.find import find_task

        if not isinstance(value, dict) or not isinstance(value.get("decode", {}), dict):
            return value
        task, is_asked = value.get("task"), value.get("method") == "none"
        if not isinstance(task, (str, dict)):
            return value
        with suppress(UserError):
            if (is_asked and find_task(task).is_written) or (isinstance(task, dict) and task.get("kind") == "document"):
                return {**value, "decode": {"stop": ["\n"], **value.get("decode", {})}}
        return value

    @field_validator("published", mode="before")
    @classmethod
    def _false_or_results(cls, value: Any) -> Any:
        if value is not None and value is not False and not isinstance(value, list):
            raise ValueError(f"{show(value)} is neither false nor a list of published results")
        return value

    @field_validator("task", mode="before")
    @classmethod
    def _name_or_object(cls, value: Any) -> Any:
        if not isinstance(value, (str, dict)):
            raise ValueError(
                f'{show(value)} is no task; give a name, or an object such as {{"kind": "classification"}}'
            )
        return value

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str | dict[str, Any]) -> str | dict[str, Any]:
        from prompt_tuning.tasks.find import find_task

        try:
            find_task(value)
        except UserError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _consistent(self) -> RunFile:
        from prompt_tuning.tasks.find import find_task

        task, prompt, problems = find_task(self.task), self.prompt, []
        if self.data.template is not None and self.data.template not in task.all_templates():
            choices = ", ".join(task.all_templates())
            problems.append(f"data.template={self.data.template!r} is no template of {task.name}; choose {choices}")
        if self.method == "shallow_prompt" and prompt.positions == "from_zero":
            problems.append(
                "prompt.positions='from_zero' does not fit method 'shallow_prompt': its prompts take the first positions;"
                " use 'after_prefix'"
            )
        problems += self._writing_problems() + self._frozen_problems() + self._asking_problems(task)
        if self.is_cloze and self.method not in ("deep_prompt", "shallow_prompt", "none"):
            problems.append(
                f"data.template={self.data.template!r} lets the language model answer, so there is no head to train;"
                " use method 'deep_prompt' or 'shallow_prompt'"
            )
        if self.data.cache_activations and self.train.backbone_dropout:
            problems.append(
                "data.cache_activations keeps what train.backbone_dropout changes in every step; set the latter to false"
            )
        if self.data.cache_activations and self.parallel.zero:
            problems.append(
                "data.cache_activations does not fit parallel.zero, whose ranks go through all layers together"
            )
        if self.method == "shallow_prompt" and prompt.layers is not None:
            problems.append("prompt.layers does not fit method 'shallow_prompt', whose prompts are at the input only")
        if prompt.reparameterisation == "mlp" and prompt.init != "normal":
            how = repr(prompt.init) if isinstance(prompt.init, str) else "a text"
            problems.append(f"prompt.init={how} fills the table itself and needs prompt.reparameterisation 'none'")
        if not isinstance(prompt.init, str) and prompt.init_from is not None:
            problems.append("prompt.init names a text and prompt.init_from a prompt to start from; keep one of them")
        if self.method == "full" and self.backbone.dtype == "bfloat16":
            problems.append(
                "method 'full' updates the weights themselves and needs backbone.dtype 'float32' or 'float64', not 'bfloat16'"
            )
        if self.method in ("full", "lora") and (self.parallel.tensor > 1 or self.parallel.zero):
            what = "the weights themselves" if self.method == "full" else "differences of the weights"
            problems.append(
                f"parallel: method {self.method!r} trains {what}, on whole copies; use tensor 1 and zero false"
            )
        if self.method in ("full", "lora") and self.backbone.quantize:
            why = "trains the weights" if self.method == "full" else "is done by PEFT on layers that hold their weights"
            problems.append(
                f"backbone.quantize={self.backbone.quantize!r} does not fit method {self.method!r}, which {why}"
                f"{' themselves, and codes cannot be' if self.method == 'full' else ''}; leave it out"
            )
        if self.optimizer.relative and (
            self.method in ("full", "lora", "shallow_prompt") or prompt.reparameterisation == "mlp"
        ):
            what = "prompt.reparameterisation 'mlp'" if self.method == "deep_prompt" else f"method {self.method!r}"
            problems.append(
                f"optimizer.relative is a share of keys and values, which {what} does not train themselves; set it to false"
            )
        if not self.parallel.zero and self.deepspeed != DeepSpeedSection():
            problems.append("deepspeed has settings of ZeRO-3, which is off; set parallel.zero to true")
        if self.method in ("full", "lora") and self.train.also:
            what = "all of the backbone" if self.method == "full" else "LoRA's differences alone"
            problems.append(f"train.also does not fit method {self.method!r}, which trains {what}; leave it out")
        if self.method in ("full", "lora") and prompt.init_from is not None:
            problems.append(f"prompt.init_from does not fit method {self.method!r}, which has no prompt")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _frozen_problems(self) -> list[str]:
        """Why the first tokens of a prompt cannot be frozen."""
        prompt = self.prompt
        if not prompt.frozen_tokens:
            return []
        found, what = [], f"prompt.frozen_tokens={prompt.frozen_tokens}"
        if self.method != "deep_prompt":
            found.append(f"{what} does not fit method {self.method!r}, which has no prefix; leave it out")
        if prompt.frozen_tokens >= prompt.length:
            found.append(f"{what} leaves nothing of prompt.length={prompt.length} to train; give a lower number")
        if prompt.init in ("normal", "zero") and prompt.init_from is None:
            found.append(f"{what} would freeze numbers that mean nothing; start from a text: prompt.init or init_from")
        if prompt.reparameterisation == "mlp":
            found.append(f"{what} needs a table of its own; set prompt.reparameterisation 'none'")
        return found

    def _asking_problems(self, task: Task) -> list[str]:
        """Why a model that nothing has trained cannot be asked so."""
        given = [f"prompt.{name}" for name in ("text", "shots") if getattr(self.prompt, name)]
        if self.method != "none":
            return [f"{' and '.join(given)} are for method 'none', which asks the frozen model"] if given else []
        found = []
        if not self.asks_language_model:
            choices = ", ".join(task.cloze)
            instead = f"set data.template to one with a gap ({choices})" if choices else "use 'head' or 'deep_prompt'"
            found.append(f"method 'none' asks the language model, and here a head answers, which is trained; {instead}")
        if self.train.also:
            found.append("train.also does not fit method 'none', which trains nothing; leave it out")
        if task.kind == "document":
            found.append(
                "method 'none' does not fit a document, which `promptfleet contexts` puts before questions itself"
            )
        if given and (not self.is_written or task.is_chat):
            found.append(
                f"{' and '.join(given)} stand before the sources of tasks of kind 'generation' with texts; leave them out"
            )
        return found

    def _writing_problems(self) -> list[str]:
        """What does not fit a task whose answers the language model writes, and what fits no other."""
        if not self.is_written:
            is_default = self.decode == DecodeSection()
            return [] if is_default else ["decode says how texts are written, which is for tasks of kind 'generation'"]
        found = []
        if self.method not in ("deep_prompt", "none"):
            found.append(f"method {self.method!r} does not fit a generation task; use 'deep_prompt' or 'none'")
        if self.prompt.layers is not None:
            found.append("prompt.layers does not fit a generation task, whose prompt is in every layer; leave it out")
        if self.train.also:
            found.append("train.also does not fit a generation task; leave it out")
        return found
