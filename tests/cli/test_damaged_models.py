"""Whatever a model's files hold: one sentence and status 1, or a server; never a stack trace, never a hang."""

import gzip
import json
import random
import re
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arriero.app import load
from arriero.config import Settings
from arriero.errors import ArrieroError
from references import vocabularies
from tiny_directory import write_directory

WEIGHTS = "model.safetensors"


@pytest.fixture
def outcome(tmp_path):
    """The complaint about a model, or None where it would be served; without a process, which takes seconds."""

    def run(path):
        settings = Settings(model=str(path), engine="onnx", slots=1, threads=1, cache=tmp_path / "cache")
        try:
            load(settings)
        except ArrieroError as error:
            complaint = str(error)
        else:
            return None
        assert re.fullmatch(r"[^\n]{20,}[.?!)]", complaint), complaint
        return complaint

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A directory that is served."""
    return write_directory(tmp_path_factory.mktemp("whole") / "Tiny")


@pytest.fixture
def damaged(whole, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "Tiny")


def edit(file, **changes):
    """Set keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(directory, change):
    weights = load_file(directory / WEIGHTS)
    change(weights)
    save_file(weights, directory / WEIGHTS)


def edit_header(directory, change):
    content = (directory / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    written = json.dumps(header).encode()
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(written)) + written + content[8 + length :])


def test_the_whole_directory_is_served(outcome, whole):
    assert outcome(whole) is None


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_truncated_file_is_named(outcome, damaged, name):
    content = (damaged / name).read_bytes()
    draw = random.Random(name)
    for length in {0, 1, 7, 8, 9, len(content) - 1, *(draw.randrange(len(content)) for _ in range(12))}:
        (damaged / name).write_bytes(content[:length])
        assert f"{damaged / name}: " in (outcome(damaged) or ""), length


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_a_missing_file_is_named(outcome, damaged, name):
    (damaged / name).unlink()
    assert name in outcome(damaged)


@pytest.mark.parametrize("length", [2**64 - 1, 2**60, 2**31, 10**7, 0, 1])
def test_a_header_of_another_length_is_noticed(outcome, damaged, length):
    content = (damaged / WEIGHTS).read_bytes()
    (damaged / WEIGHTS).write_bytes(struct.pack("<Q", length) + content[8:])
    assert f"{damaged / WEIGHTS}: is not a whole safetensors file" in outcome(damaged)


def test_flipped_bytes_of_the_header_are_a_sentence_or_harmless(outcome, damaged):
    content = (damaged / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    draw = random.Random(1)
    for _ in range(60):
        place = draw.randrange(8 + length)
        (damaged / WEIGHTS).write_bytes(content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :])
        outcome(damaged)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop(NORM), r"tensor model\.norm\.weight is missing, expected shape \[64\]"),
        (lambda weights: weights.update({NORM: np.ones(65, np.float32)}), r"has shape \[65\], .* implies \[64\]"),
        (lambda weights: weights.update({NORM: np.ones((64, 1), np.float32)}), r"has shape \[64, 1\]"),
        (lambda weights: weights.update({NORM: np.ones(64, np.int32)}), r"weight is stored as I32, Arriero reads F32"),
        (lambda weights: weights.update({NORM: np.full(64, np.nan, np.float32)}), r"not finite numbers"),
        (lambda weights: weights.update({"model.extra": np.ones(1, np.float32)}), r"tensor model\.extra has no place"),
    ],
)
def test_a_wrong_tensor_is_named(outcome, damaged, change, message):
    edit_weights(damaged, change)
    complaint = outcome(damaged)
    assert re.search(message, complaint), complaint
    assert str(damaged) in complaint


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header[NORM].update(data_offsets=[0, 2**62]),
        lambda header: header[NORM].update(data_offsets=[2**62, 0]),
        lambda header: header[NORM].update(shape=[2**40, 2**40]),
        lambda header: header[NORM].update(dtype="F99"),
        lambda header: header[NORM].pop("dtype"),
        lambda header: header.update({NORM: 1}),
    ],
)
def test_a_header_that_lies_is_noticed(outcome, damaged, change):
    edit_header(damaged, change)
    assert f"{damaged / WEIGHTS}: " in outcome(damaged)


def write_index(directory, weight_map):
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({NORM: "b.safetensors"}, r"b\.safetensors: is not a whole safetensors file: .*No such file"),
        ({NORM: "a.safetensors", "none": "a.safetensors"}, r"a\.safetensors: tensor none is missing, though"),
        ({NORM: "../a.safetensors"}, r"weight_map does not map tensor names to files beside it"),
        ({NORM: 1}, r"weight_map does not map"),
        ([], r"weight_map does not map"),
    ],
)
def test_a_wrong_index_is_explained(outcome, damaged, weight_map, message):
    (damaged / WEIGHTS).rename(damaged / "a.safetensors")
    write_index(damaged, weight_map)
    complaint = outcome(damaged)
    assert re.search(message, complaint), complaint


SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "head_dim",
)


@pytest.mark.parametrize("value", [0, -1, 3, 10**30, 2**63, 1.5, 1e300, "64", [], {}, True])
@pytest.mark.parametrize("name", SIZES)
def test_absurd_sizes_are_refused(outcome, damaged, name, value):
    edit(damaged / "config.json", **{name: value})
    if (name, value) == ("max_position_embeddings", 3):
        return  # small, but nothing contradicts it
    complaint = outcome(damaged)
    assert complaint is not None
    assert str(damaged) in complaint


@pytest.mark.parametrize("value", [0, -1, "x", 1e400, [], True, 10**400])
@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
def test_absurd_numbers_are_refused(outcome, damaged, name, value):
    edit(damaged / "config.json", **{name: value})
    assert str(damaged / "config.json") in outcome(damaged)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"architectures": ["Nobody"]}),
        ("config.json", {"architectures": 7}),
        ("config.json", {"rope_scaling": 7}),
        ("config.json", {"rope_scaling": {"rope_type": "unheard of", "factor": 2}}),
        ("config.json", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}),
        ("config.json", {"quantization_config": {"quant_method": "gptq"}}),
        ("config.json", {"hidden_act": "unheard of"}),
        ("config.json", {"eos_token_id": "2"}),
        ("config.json", {"tie_word_embeddings": "yes"}),
        ("tokenizer.json", {"model": None}),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": [], "merges": 3}}),
        ("tokenizer.json", {"model": {"type": "Nothing", "vocab": {}}}),
        ("tokenizer.json", {"added_tokens": [{}]}),
        ("tokenizer.json", {"added_tokens": 3}),
        ("tokenizer.json", {"added_tokens": [{"content": "<end>", "id": "x"}]}),
        ("tokenizer.json", {"decoder": {"type": "Unheard"}}),
        ("tokenizer.json", {"decoder": 3}),
        ("tokenizer.json", {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}}),
        ("tokenizer_config.json", {"chat_template": 3}),
        ("tokenizer_config.json", {"chat_template": "{% for %}"}),
        ("tokenizer_config.json", {"chat_template": [3]}),
    ],
)
def test_a_wrong_setting_is_refused_or_harmless(outcome, damaged, file, changes):
    edit(damaged / file, **changes)
    complaint = outcome(damaged)
    harmless = changes in ({"chat_template": [3]},)
    assert (complaint is None) == harmless
    if complaint:
        assert str(damaged) in complaint or "chat template is not valid" in complaint


@pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 100_000, '{"a": 1', "\x00", "{}"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_json_that_is_something_else_is_refused(outcome, damaged, file, text):
    (damaged / file).write_text(text)
    assert str(damaged) in outcome(damaged)


def test_files_that_are_not_text_are_refused(outcome, damaged):
    (damaged / "chat_template.jinja").write_bytes(b"\xff\xfe")
    assert str(damaged / "chat_template.jinja") in outcome(damaged)


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.onnx", "model.pt", "consolidated.pth"])
def test_weights_in_other_forms_say_which_and_what_helps(outcome, damaged, name):
    (damaged / WEIGHTS).rename(damaged / name)
    complaint = outcome(damaged)
    assert f"but {name}, " in complaint
    assert "save the model as safetensors" in complaint
    (damaged / "config.json").unlink()
    assert f"no {damaged.joinpath(name).suffix} files" in outcome(damaged / name)


def test_pickled_weights_are_for_torch(outcome, damaged, monkeypatch):
    monkeypatch.setattr("arriero.app.engines.torch_is_installed", lambda: False)
    (damaged / WEIGHTS).rename(damaged / "pytorch_model.bin")
    assert "pickled" in outcome(damaged)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "Tiny.gguf"
    made = json.loads(gzip.decompress(vocabularies.FILE.read_bytes()))["gguf"]["byte-level-gguf"]
    vocabularies.write_gguf(path, made, tensors=True)
    return path


def test_the_whole_gguf_file_is_served(outcome, gguf):
    assert outcome(gguf) is None


def test_a_truncated_gguf_file_is_noticed_wherever_it_ends(outcome, gguf, tmp_path):
    content = gguf.read_bytes()
    draw = random.Random(2)
    path = tmp_path / "Tiny.gguf"
    for length in {0, 3, 4, 8, 16, 24, len(content) - 1, *(draw.randrange(len(content)) for _ in range(60))}:
        path.write_bytes(content[:length])
        assert f"{path}: " in (outcome(path) or ""), length


def test_flipped_bytes_of_a_gguf_file_are_a_sentence_or_harmless(outcome, gguf, tmp_path):
    content = bytearray(gguf.read_bytes())
    draw = random.Random(3)
    path = tmp_path / "Tiny.gguf"
    complaints = 0
    for turn in range(70):
        place = draw.randrange(700 if turn % 2 else len(content) - 40_000)
        kept, content[place] = content[place], draw.randrange(256)
        path.write_bytes(content)
        complaints += outcome(path) is not None
        content[place] = kept
    assert complaints > 20


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "tokenizer.json"])
async def test_a_real_process_says_it_as_well(run, damaged, tmp_path, file):
    content = (damaged / file).read_bytes()
    (damaged / file).write_bytes(content[: len(content) // 2])
    finished = await run("serve", str(damaged), "--port", "0", "--cache", str(tmp_path / "cache"))
    assert (finished.status, finished.stdout) == (1, "")
    assert finished.stderr.startswith(f"arriero: {damaged / file}: ")
    assert finished.stderr.count("\n") == 1
