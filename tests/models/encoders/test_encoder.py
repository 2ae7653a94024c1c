"""Directories of encoders: what is read, what is allowed beside it, and what is refused by name."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.encoders.encoder import open_encoder
from arriero.models.encoders.pooling import Dense, Pooling
from references import tiny_encoders


def change_tensors(path, change):
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def change_json(file, **changes):
    file.parent.mkdir(exist_ok=True)
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**values, **changes}))


def change_modules(path, *modules):
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": place} for kind, place in modules]
    (path / "modules.json").write_text(json.dumps(entries))


@pytest.fixture
def bert(tmp_path):
    return tiny_encoders.write("bert", tmp_path / "bert")


def test_facts(bert, tmp_path):
    checkpoint = open_encoder(bert)
    assert (checkpoint.task, checkpoint.context, checkpoint.width) == ("embed", 128, 6 * 48)
    assert checkpoint.source_format == "F32"
    assert checkpoint.parameters == sum(tensor.size for tensor in load_file(bert / "model.safetensors").values())
    assert checkpoint.tensor("layers.1.attention.qkv.weight").shape == (144, 48)
    change_json(bert / "sentence_bert_config.json", max_seq_length=50)
    assert open_encoder(bert).context == 50
    scorer = open_encoder(tiny_encoders.write("bert_scores", tmp_path / "scores"))
    assert (scorer.task, scorer.width) == ("score", 3)
    assert scorer.config.head.labels == ("no", "maybe", "yes")
    assert open_encoder(tiny_encoders.write("roberta", tmp_path / "roberta")).context == 126


def test_identity_changes_with_what_it_is_made_of(bert):
    first = open_encoder(bert).identity
    assert open_encoder(bert).identity == first
    change_json(bert / "1_Pooling/config.json", pooling_mode="cls")
    second = open_encoder(bert).identity
    change_json(bert / "config.json", layer_norm_eps=1e-6)
    assert len({first, second, open_encoder(bert).identity}) == 3


def test_heads_and_buffers_that_embedding_does_not_need_may_be_there(bert):
    expected = open_encoder(bert).tensor("embeddings.norm.weight")

    def dress_up(tensors):
        for name in list(tensors):
            renamed = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[f"bert.{renamed}"] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = np.arange(128)[None]
        tensors["bert.pooler.dense.weight"] = np.zeros((48, 48), np.float32)
        tensors["cls.predictions.bias"] = np.zeros(300, np.float32)

    change_tensors(bert, dress_up)
    np.testing.assert_array_equal(open_encoder(bert).tensor("embeddings.norm.weight"), expected)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda tensors: tensors.pop("encoder.layer.2.output.dense.bias"), r"output\.dense\.bias is missing.*\[48\]"),
        (lambda tensors: tensors.update(extra=np.zeros(3, np.float32)), "extra has no place"),
        (
            lambda tensors: tensors.update({"embeddings.LayerNorm.bias": np.zeros(47, np.float32)}),
            r"embeddings\.LayerNorm\.bias has shape \[47\], .* implies \[48\]",
        ),
    ],
)
def test_other_tensors_than_the_configuration_implies_are_named(change, complaint, bert):
    change_tensors(bert, change)
    with pytest.raises(ModelLoadError, match=complaint):
        open_encoder(bert)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "deberta-v2"}, "deberta-v2.*Arriero runs the encoders bert"),
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification is for a task"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_is_not_computed_is_refused(changes, complaint, bert):
    change_json(bert / "config.json", **changes)
    (bert / "modules.json").unlink()
    with pytest.raises(UnsupportedModel, match=complaint):
        open_encoder(bert)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_attention_heads": 5}, "5 heads cannot share 48"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"hidden_size": "48"}, "hidden_size is '48', expected an integer"),
    ],
)
def test_numbers_that_cannot_be_are_refused(changes, complaint, bert):
    change_json(bert / "config.json", **changes)
    with pytest.raises(ModelLoadError, match=complaint):
        open_encoder(bert)


@pytest.mark.parametrize(
    ("values", "activation"),
    [
        ({"id2label": {"0": "LABEL_0"}}, "sigmoid"),
        ({"id2label": {"0": "a", "1": "b"}}, "identity"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "tanh"),
    ],
)
def test_what_is_applied_to_scores(values, activation, tmp_path):
    path = tiny_encoders.write("bert_scores", tmp_path / "scores")
    count = len(values.setdefault("id2label", {"0": "LABEL_0"}))

    def cut(tensors):
        for kind in ("weight", "bias"):
            tensors[f"classifier.{kind}"] = tensors[f"classifier.{kind}"][:count].copy()

    change_json(path / "config.json", **values)
    change_tensors(path, cut)
    assert open_encoder(path).config.head.score_activation == activation
    change_json(path / "config_sentence_transformers.json", activation_fn="torch.nn.modules.activation.Sigmoid")
    assert open_encoder(path).config.head.score_activation == "sigmoid"


def test_without_files_of_sentence_transformers_the_mean_is_taken(bert):
    (bert / "modules.json").unlink()
    assert open_encoder(bert).pooling == Pooling()
    change_json(bert / "tokenizer_config.json", model_max_length=10**30)
    assert open_encoder(bert).context == 128
    change_json(bert / "tokenizer_config.json", model_max_length=64)
    assert open_encoder(bert).context == 64


def test_pooling_by_older_keys_then_dense_and_normalised(bert):
    change_modules(bert, ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("Normalize", "3_N"))
    (bert / "1_Pooling/config.json").unlink()
    change_json(
        bert / "1_Pooling/config.json",
        word_embedding_dimension=48,
        pooling_mode_mean_tokens=True,
        pooling_mode_cls_token=True,
        pooling_mode_max_tokens=False,
    )
    change_json(
        bert / "2_Dense/config.json",
        in_features=96,
        out_features=20,
        bias=True,
        activation_function="torch.nn.modules.activation.Tanh",
    )
    weight, bias = np.ones((20, 96), np.float32), np.full(20, 2, np.float32)
    save_file({"linear.weight": weight, "linear.bias": bias}, bert / "2_Dense/model.safetensors")
    change_json(
        bert / "config_sentence_transformers.json",
        prompts={"query": "query: ", "document": None},
        default_prompt_name="query",
        similarity_fn_name="dot",
    )
    checkpoint = open_encoder(bert)
    pooling = checkpoint.pooling
    assert pooling.modes == ("cls", "mean")
    dense, last = pooling.steps
    assert isinstance(dense, Dense)
    np.testing.assert_array_equal(dense.weight, weight)
    np.testing.assert_array_equal(dense.bias, bias)
    assert (dense.activation, last, checkpoint.width) == ("tanh", "normalize", 20)
    assert (pooling.prompts, pooling.default_prompt) == ({"query": "query: ", "document": ""}, "query")
    assert pooling.similarity == "dot"
    save_file({"linear.weight": weight}, bert / "2_Dense/model.safetensors")
    with pytest.raises(ModelLoadError, match="2_Dense: holds the tensors"):
        open_encoder(bert)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda path: change_modules(path, ("Transformer", ""), ("Pooling", "1_Pooling"), ("LSTM", "2")), "LSTM"),
        (lambda path: change_modules(path, ("Pooling", "1_Pooling"), ("Transformer", "")), "in this order"),
        (lambda path: (path / "modules.json").write_text('[{"type": "own.Module", "path": ""}]'), "the model's own"),
        (lambda path: change_json(path / "1_Pooling/config.json", pooling_mode="middle"), "pools by 'middle'"),
        (lambda path: change_json(path / "config_sentence_transformers.json", model_type="SparseEncoder"), "SparseEnc"),
        (
            lambda path: (
                change_json(path / "config_sentence_transformers.json", prompts={"query": "q: "}),
                change_json(path / "1_Pooling/config.json", include_prompt=False),
            ),
            "include_prompt",
        ),
    ],
)
def test_pooling_that_is_not_computed_is_refused(change, complaint, bert):
    change(bert)
    with pytest.raises(UnsupportedModel, match=complaint):
        open_encoder(bert)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda path: (path / "modules.json").write_text("{}"), "expected a JSON array"),
        (lambda path: (path / "modules.json").write_text('[{"type": "sentence_transformers.x"}]'), "names no module"),
        (lambda path: change_json(path / "1_Pooling/config.json", embedding_dimension=32), "32 elements"),
        (lambda path: change_json(path / "sentence_bert_config.json", max_seq_length="all"), "max_seq_length is 'all'"),
        (lambda path: change_json(path / "config_sentence_transformers.json", prompts=["q"]), "prompts"),
        (lambda path: change_json(path / "config_sentence_transformers.json", default_prompt_name="x"), "default_pro"),
    ],
)
def test_damaged_files_of_sentence_transformers_are_named(change, complaint, bert):
    change(bert)
    with pytest.raises(ModelLoadError, match=complaint):
        open_encoder(bert)


NOMIC_NAMES = (
    ("layers.", "encoder.layers."),
    ("embeddings.LayerNorm", "emb_ln"),
    ("self_attn.o_proj", "attn.out_proj"),
    ("up_proj", "fc11"),
    ("gate_proj", "fc12"),
    ("down_proj", "fc2"),
    ("post_attention_layernorm", "norm1"),
    ("post_mlp_layernorm", "norm2"),
)


def test_the_first_nomic_repositories_are_the_same_model(tmp_path):
    path = tiny_encoders.write("nomic", tmp_path / "nomic")
    newer = open_encoder(path)
    expected = {name: newer.tensor(name) for name in ("layers.2.mlp.inner.weight", "layers.0.attention.qkv.weight")}

    def rename(tensors):
        for layer in range(3):
            parts = [tensors.pop(f"layers.{layer}.self_attn.{part}_proj.weight") for part in "qkv"]
            tensors[f"encoder.layers.{layer}.attn.Wqkv.weight"] = np.concatenate(parts)
        for name in list(tensors):
            renamed = name
            for new, old in NOMIC_NAMES:
                renamed = renamed.replace(new, old) if not renamed.startswith(old) else renamed
            tensors[renamed] = tensors.pop(name)

    change_tensors(path, rename)
    older = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "n_layer": 3,
        "n_embd": 48,
        "n_inner": 100,
        "n_head": 3,
        "n_positions": 512,
        "max_trained_positions": 128,
        "rotary_emb_base": 1000,
        "rotary_scaling_factor": 2,
        "layer_norm_epsilon": 1e-12,
        "activation_function": "swiglu",
        "vocab_size": 300,
        "type_vocab_size": 2,
        "rotary_emb_fraction": 1.0,
    }
    (path / "config.json").write_text(json.dumps(older))
    opened = open_encoder(path)
    assert opened.config == newer.config
    for name, tensor in expected.items():
        np.testing.assert_array_equal(opened.tensor(name), tensor)
