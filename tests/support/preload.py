"""What every forked rank would import again: imported once, by the process that they are forked from. Starts no thread."""

import deepspeed.ops
import deepspeed.runtime.config
import deepspeed.runtime.zero.parameter_offload
import deepspeed.runtime.zero.partition_parameters
import transformers.models.bert.modeling_bert  # noqa: F401

import prompt_tuning.trainer  # noqa: F401
import tests.support.fleets  # noqa: F401

# Which operators can be built here: DeepSpeed tries a compiler when it is first asked.
deepspeed.ops.__compatible_ops__  # noqa: B018
