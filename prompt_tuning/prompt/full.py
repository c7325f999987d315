"""What method ``full`` writes beside its prompt: the whole backbone, which it has trained."""

from __future__ import annotations

from pathlib import Path

from model_parallel.loading import stored_tensors
from prompt_tuning.backbone.attention import attention_name
from prompt_tuning.backbone.find import describe_backbone
from prompt_tuning.backbone.fingerprint import identify
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.prompt.manifest import Manifest
from prompt_tuning.settings.sections import BackboneSection
from prompt_tuning.storage.atomic import new_folder


def write_model(folder: Path, backbone: Backbone, attention: str) -> Manifest:
    """Save a fine-tuned backbone as a transformers folder with its tokenizer.

    Returns what a prompt beside it records of its backbone in place of the untrained one's.
    """
    model = backbone.model
    with new_folder(folder) as target:
        model.pooler = backbone.pooler
        model.set_attn_implementation(attention)  # our attention's name means nothing to another program
        model.save_pretrained(target)
        backbone.tokenizer.save_pretrained(target)
        model.set_attn_implementation(attention_name(attention))
        if hasattr(model, "pooler"):
            model.pooler = None
    # As it will be read back, which may say the same in another way.
    described = describe_backbone(BackboneSection(path=str(folder)))
    stored = stored_tensors(folder, set(model.state_dict()), model.base_model_prefix)
    written = identify(stored, described.config, described.tokenizer)
    return {"path": f"../{folder.name}", "fingerprint": written.fingerprint, "identity": written.to_json()}
