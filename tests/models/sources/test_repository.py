from __future__ import annotations

import pytest

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.sources.repository import HubName, hub_name, needed_files

NAME = HubName("org/name")
DECODER = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
ASIDE = ["README.md", ".gitattributes", "onnx/model.onnx", "tf_model.h5", "flax_model.msgpack", "modeling_own.py"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", NAME),
        ("Qwen/Qwen2.5-0.5B", HubName("Qwen/Qwen2.5-0.5B")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/4", HubName("org/name", "refs/pr/4")),
        ("org/name:Q4_K_M", HubName("org/name", quantisation="Q4_K_M")),
        ("org/name:q8_0@main", HubName("org/name", "main", quantisation="q8_0")),
        ("org/name/file.Q4.gguf", HubName("org/name", file="file.Q4.gguf")),
        ("org/name/sub/file.GGUF@abc", HubName("org/name", "abc", file="sub/file.GGUF")),
        ("name", None),
        ("/org/name", None),
        ("./org/name", None),
        ("~/name", None),
        ("org/name/", None),
        ("org/name/file.bin", None),
        ("models/llama.gguf", None),
        ("org/name@", None),
        ("", None),
    ],
)
def test_names(text: str, name: HubName | None) -> None:
    assert hub_name(text) == name


def test_one_form_of_the_weights_and_what_goes_with_them() -> None:
    weights = ["model.safetensors", "pytorch_model.bin", "model.fp16.safetensors", "consolidated.safetensors"]
    files = [*DECODER, *ASIDE, *weights, "additional_chat_templates/tools.jinja", "chat_template.jinja"]
    expected = {*DECODER, "model.safetensors", "additional_chat_templates/tools.jinja", "chat_template.jinja"}
    assert set(needed_files(NAME, files)) == expected
    assert set(needed_files(NAME, files, code=True)) == {*expected, "modeling_own.py"}


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], "model.safetensors.index.json"),
        (["model.safetensors", "model.safetensors.index.json"], "model.safetensors"),
        (["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin"], "pytorch_model.bin.index.json"),
        (["pytorch_model.bin", "training_args.bin", "model.gguf"], "pytorch_model.bin"),
        (["pytorch_model.bin", "model.safetensors.index.json"], "model.safetensors.index.json"),
    ],
)
def test_safetensors_come_first_and_an_index_stands_for_its_files(weights: list[str], chosen: str) -> None:
    assert set(needed_files(NAME, [*DECODER, *weights])) == {*DECODER, chosen}


def test_modules_of_sentence_transformers_bring_their_own_files() -> None:
    modules = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    files = ["config.json", "model.safetensors", "vocab.txt", *modules]
    aside = ["2_Dense/pytorch_model.bin", "onnx/config.json", "openvino/model.safetensors"]
    assert set(needed_files(NAME, [*files, *aside])) == set(files)


def test_modules_may_hold_the_transformer() -> None:
    files = ["modules.json", "0_Transformer/config.json", "0_Transformer/model.safetensors", "1_Pooling/config.json"]
    assert set(needed_files(NAME, files)) == set(files)


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin"])
def test_adapters(weights: str) -> None:
    files = ["adapter_config.json", weights, "tokenizer.model", "special_tokens_map.json"]
    assert set(needed_files(NAME, [*files, "README.md", "optimizer.pt"])) == set(files)


GGUFS = ["m-Q4_K_M.gguf", "m-IQ4_XS.gguf", "m-Q4_K_S.gguf", "big/m-BF16.gguf", "mmproj-m-F16.gguf", "m.imatrix.gguf"]


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("org/name:Q4_K_M", "m-Q4_K_M.gguf"),
        ("org/name:q4_k_s", "m-Q4_K_S.gguf"),
        ("org/name:BF16", "big/m-BF16.gguf"),
        ("org/name/m-IQ4_XS.gguf", "m-IQ4_XS.gguf"),
        ("org/name/big/m-BF16.gguf", "big/m-BF16.gguf"),
    ],
)
def test_a_gguf_file_comes_alone(name: str, chosen: str) -> None:
    parsed = hub_name(name)
    assert parsed is not None
    assert needed_files(parsed, [*DECODER, *GGUFS]) == [chosen]


def test_the_only_gguf_file_needs_no_name() -> None:
    assert needed_files(NAME, ["config.json", "README.md", "mmproj-F16.gguf", "m.gguf"]) == ["m.gguf"]


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("org/name", GGUFS, r"holds 4 GGUF files\. Say which, as in org/name:BF16: :BF16, :IQ4_XS, :Q4_K_M, :Q4_K_S\."),
        ("org/name:Q8_0", GGUFS, r"has no GGUF file that ends in Q8_0\. Say which.*:Q4_K_M"),
        ("org/name/x.gguf", GGUFS, r"has no x\.gguf\. Say which"),
        ("org/name:Q4_0", ["a-Q4_0.gguf", "b-Q4_0.gguf"], r"more than one.*: /a-Q4_0\.gguf, /b-Q4_0\.gguf\."),
        ("org/name:Q4_0", DECODER, r"It has no GGUF files\."),
        ("org/name:Q8_0", ["m-Q8_0-00001-of-00002.gguf"], r"no GGUF file that ends"),
        ("org/name", ["m-Q8_0-00001-of-00002.gguf"], r"one part of a model.*llama-gguf-split --merge"),
        (
            "org/name",
            ["config.json", "tf_model.h5", "onnx/model.onnx"],
            r"it holds onnx/model\.onnx, tf_model\.h5",
        ),
        ("org/name", ["config.json", "model.fp16.safetensors"], r"it holds model\.fp16\.safetensors; Arriero reads"),
        ("org/name", ["README.md"], r"it holds no weights at all"),
    ],
)
def test_what_cannot_be_chosen_is_explained(name: str, files: list[str], message: str) -> None:
    parsed = hub_name(name)
    assert parsed is not None
    with pytest.raises(ModelLoadError, match=message):
        needed_files(parsed, files)


def test_weights_of_another_kind_are_a_matter_of_support() -> None:
    with pytest.raises(UnsupportedModel):
        needed_files(NAME, ["config.json", "tf_model.h5"])
