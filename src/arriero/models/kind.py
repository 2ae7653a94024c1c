"""What kind of model lies at a path, told from its configuration before anything else is read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from arriero.errors import ModelLoadError
from arriero.models.files.json_files import brief, read_json

Kind = Literal["decoder", "encoder", "encoder-decoder"]

# model_type of transformers' bidirectional models, whatever head they carry.
_ENCODERS = frozenset(
    {
        *("albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
        *("esm", "eurobert", "fnet", "ibert", "jina_embeddings_v3", "longformer", "megatron-bert", "mobilebert"),
        *("modernbert", "mpnet", "new", "nomic_bert", "nystromformer", "rembert", "roberta", "roberta-prelayernorm"),
        *("roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl"),
    }
)
# Those whose configurations do not always say is_encoder_decoder.
_ENCODER_DECODERS = frozenset(
    {
        *("bart", "blenderbot", "blenderbot-small", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "mvp"),
        *("nllb-moe", "pegasus", "pegasus_x", "plbart", "prophetnet", "switch_transformers", "t5", "t5gemma", "umt5"),
    }
)
_DECODER_HEADS = ("ForCausalLM", "LMHeadModel")
_ENCODER_HEADS = ("EncoderModel", "ForMaskedLM", "ForPreTraining")


def kind_of(path: Path) -> Kind:
    """The kind of the model at `path`: a GGUF file, which is a decoder, or a directory with config.json.

    Raises `ModelLoadError` where config.json is missing, damaged, or does not tell.
    """
    if not path.is_dir():
        return "decoder"
    refuse_adapter(path)
    file = path / "config.json"
    config = read_json(file)
    model_type = config.get("model_type")
    listed = config.get("architectures")
    architecture = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], str) else ""
    if architecture.endswith(_ENCODER_HEADS):
        return "encoder"
    if config.get("is_encoder_decoder") is True or model_type in _ENCODER_DECODERS:
        return "encoder-decoder"
    if architecture.endswith(_DECODER_HEADS):
        return "decoder"
    if model_type in _ENCODERS:
        return "encoder"
    if architecture:
        return "decoder"
    raise ModelLoadError(
        f"{file}: tells neither an architecture nor a known model type (architectures {brief(listed)}, "
        f"model_type {brief(model_type)}), so it cannot be told what kind of model this is."
    )


def refuse_adapter(path: Path) -> None:
    """Raise `ModelLoadError` for a directory that holds an adapter and no model."""
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path") or "BASE"
        raise ModelLoadError(
            f"{path}: is a LoRA adapter; give it with --lora-model, beside the model that it is for: "
            f"arriero serve {base} --lora-model {path}."
        )
