"""Backbones of families that are not there: the nearest that is, what a new one needs, or why there is none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

from prompt_tuning.backbone.families import families, find_family
from prompt_tuning.backbone.families._declined import _OWN_ATTENTION, DECLINED
from prompt_tuning.errors import UserError

_HEARS = re.compile("audio|speech|voice|voxtral|asr|music|seamless|transcribe")


@pytest.mark.parametrize(
    ("model_type", "nearest"),
    [("bertt", "bert"), ("ModernBERT", "modernbert"), ("xlm_roberta", "xlm-roberta"), ("qwen4", "qwen3")],
)
def test_the_nearest_family_is_named_and_what_a_new_one_needs(model_type, nearest):
    with pytest.raises(UserError) as error:
        find_family(model_type)
    assert f"{model_type!r} is not supported (the nearest that is: {nearest!r})" in str(error.value)
    assert "needs a file in prompt_tuning/backbone/families that names its layers" in str(error.value)
    assert "choose one of albert, bart, bert" in str(error.value)


def test_what_is_near_to_nothing_has_no_nearest():
    with pytest.raises(UserError) as error:
        find_family("zzz")
    assert "nearest" not in str(error.value)


@pytest.mark.parametrize("model_type", ["mpnet", "fnet", "xmod", "layoutlm"])
def test_a_family_that_cannot_be_says_why(model_type):
    with pytest.raises(UserError) as error:
        find_family(model_type)
    assert f"{model_type!r} is not supported: {DECLINED[model_type]}; choose one of" in str(error.value)


def test_every_encoder_with_a_decoder_that_writes_says_what_to_take_instead():
    """Those of texts; transformers' mapping holds such as hear or see too."""
    text = {name for name in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES if not _HEARS.search(name)} - set(families())
    assert {"led", "m2m_100", "marian", "mbart", "pegasus", "t5gemma"} < text
    for model_type in text:
        with pytest.raises(UserError, match="to write texts choose 'bart', 't5' or a decoder such as 'llama', to read"):
            find_family(model_type)


def test_no_family_is_declined():
    assert not set(DECLINED) & set(families())


@pytest.mark.parametrize("model_type", sorted(DECLINED))
def test_a_declined_type_is_one_of_transformers_and_attends_as_said(model_type):
    """Should a later version of transformers send it through the interface, it can have its file."""
    assert model_type in CONFIG_MAPPING_NAMES
    folder = Path(transformers.__file__).parent / "models" / model_type_to_module_name(model_type)
    (file, *_) = sorted(folder.glob(f"modeling_{model_type_to_module_name(model_type)}.py"))
    if DECLINED[model_type] == _OWN_ATTENTION:
        assert "ALL_ATTENTION_FUNCTIONS" not in file.read_text(encoding="utf-8")
