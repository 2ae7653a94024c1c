import json
from pathlib import Path

import pytest

from arriero.errors import ModelLoadError
from arriero.models.kind import kind_of


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "decoder"),
        ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "decoder"),
        ({"architectures": ["MistralModel"], "model_type": "mistral"}, "decoder"),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}, "decoder"),
        ({"architectures": ["BertModel"], "model_type": "bert"}, "encoder"),
        ({"architectures": ["BertForSequenceClassification"], "model_type": "bert"}, "encoder"),
        ({"architectures": ["XLMRobertaForMaskedLM"], "model_type": "xlm-roberta"}, "encoder"),
        ({"model_type": "distilbert"}, "encoder"),
        ({"architectures": ["T5EncoderModel"], "model_type": "t5", "is_encoder_decoder": True}, "encoder"),
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "encoder-decoder"),
        ({"architectures": ["BartModel"], "is_encoder_decoder": True}, "encoder-decoder"),
        ({"architectures": ["MarianMTModel"], "model_type": "marian"}, "encoder-decoder"),
    ],
)
def test_config_json_tells(config, kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert kind_of(tmp_path) == kind


def test_a_gguf_file_is_a_decoder():
    assert kind_of(Path("model.gguf")) == "decoder"


@pytest.mark.parametrize("config", [{}, {"model_type": "something"}, {"architectures": []}, {"architectures": [3]}])
def test_what_does_not_tell_is_refused(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="cannot be told what kind"):
        kind_of(tmp_path)


def test_a_directory_without_configuration_is_refused(tmp_path):
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        kind_of(tmp_path)
