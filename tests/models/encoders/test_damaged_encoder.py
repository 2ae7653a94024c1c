"""Whatever happens to an encoder's files, opening it works or fails with one kind of error."""

import json
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arriero.errors import ModelLoadError
from arriero.models.encoders.encoder import open_encoder
from arriero.models.encoders.encoder_config import tensor_shapes
from references import tiny_encoders

FILES = ("config.json", "modules.json", "1_Pooling/config.json", "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_encoders.write("modernbert", tmp_path_factory.mktemp("encoder"))


@contextmanager
def changed(file, content):
    before = file.read_bytes() if file.exists() else None
    file.write_bytes(content)
    try:
        yield
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_bytes(before)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 255)), max_size=3),
    st.one_of(st.none(), st.integers(0, 1 << 12)),
)
def test_damage_never_gives_another_error(whole, file, damage, length):
    content = bytearray((whole / file).read_bytes())
    for position, byte in damage:
        content[position % len(content)] = byte
    with changed(whole / file, bytes(content[:length])), suppress(ModelLoadError):
        checkpoint = open_encoder(whole)
        for name, shape in tensor_shapes(checkpoint.config):
            assert checkpoint.tensor(name).shape == shape


KNOWN = {
    "config.json": (
        *("layer_types", "rope_parameters", "local_attention", "global_attn_every_n_layers", "hidden_activation"),
        *("norm_eps", "norm_bias", "architectures", "model_type", "hidden_size", "num_attention_heads", "vocab_size"),
        *("num_hidden_layers", "max_position_embeddings", "quantization_config", "id2label"),
    ),
    "1_Pooling/config.json": ("pooling_mode", "embedding_dimension", "include_prompt", "pooling_mode_cls_token"),
    "config_sentence_transformers.json": (
        *("prompts", "default_prompt_name", "similarity_fn_name", "activation_fn", "model_type"),
    ),
    "sentence_bert_config.json": ("max_seq_length",),
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 1000),
    st.floats(),
    st.text(max_size=3),
    st.just(10**400),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=1)), max_size=4),
    st.dictionaries(
        st.sampled_from(["0", "full_attention", "query"]), st.one_of(st.none(), st.integers(), st.just({}))
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([(file, key) for file, keys in KNOWN.items() for key in keys]), VALUES)
def test_odd_values_never_give_another_error(whole, place, value):
    file, key = whole / place[0], place[1]
    before = json.loads(file.read_bytes()) if file.exists() else {}
    with changed(file, json.dumps({**before, key: value}).encode()), suppress(ModelLoadError):
        open_encoder(whole)
