"""Small random encoders of every family, for which tiny_encoders.npz holds what transformers makes of them.

    python tests/references/tiny_encoders.py      makes tiny_encoders.npz; this alone needs torch and transformers

Weights and inputs come from the raw bits of a PCG64 generator, which NumPy guarantees never to change: the tests
write the same directories without torch and without any file.

    <case>    float32 [inputs, 6 * hidden]   of encoders, of their last hidden states the first, the largest, the mean,
                                             the sum over the root of the length, the mean by position, the last
              float32 [inputs, labels]       of cross-encoders: logits
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from arriero.models.encoders.encoder import configure, source_names
from arriero.models.encoders.encoder_config import tensor_shapes
from arriero.models.files.json_files import Settings

FILE = Path(__file__).with_suffix(".npz")
INPUT_LENGTHS = (1, 2, 9, 40, 100, 17, 40)
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")

_SMALL: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_attention_heads": 3,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}
_LABELS = {"id2label": {"0": "no", "1": "maybe", "2": "yes"}, "label2id": {"no": 0, "maybe": 1, "yes": 2}}


_ROBERTA = {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
_DISTILBERT = {
    "model_type": "distilbert",
    "architectures": ["DistilBertModel"],
    "n_layers": 3,
    "dim": 48,
    "hidden_dim": 100,
    "n_heads": 3,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}
_MODERNBERT = {
    "num_hidden_layers": 4,
    "local_attention": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}


def _case(model_type: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {**_SMALL, "model_type": model_type, "architectures": [architecture], **changes}


CASES: Mapping[str, dict[str, Any]] = {
    "bert": _case("bert", "BertModel"),
    "bert_new_gelu": _case("bert", "BertModel", hidden_act="gelu_new", layer_norm_eps=1e-5),
    "bert_relu_one_type": _case("bert", "BertForMaskedLM", hidden_act="relu", type_vocab_size=1),
    "bert_scores": _case("bert", "BertForSequenceClassification", **_LABELS),
    "roberta": _case("roberta", "RobertaModel", **_ROBERTA),
    "roberta_scores": _case("roberta", "RobertaForSequenceClassification", **_ROBERTA, **_LABELS),
    "xlm_roberta": _case("xlm-roberta", "XLMRobertaModel", **_ROBERTA),
    "xlm_roberta_scores": _case("xlm-roberta", "XLMRobertaForSequenceClassification", **_ROBERTA, **_LABELS),
    "distilbert": _DISTILBERT,
    "distilbert_scores": {**_DISTILBERT, "architectures": ["DistilBertForSequenceClassification"], **_LABELS},
    "mpnet": _case("mpnet", "MPNetModel", layer_norm_eps=1e-5),
    "mpnet_scores": _case("mpnet", "MPNetForSequenceClassification", layer_norm_eps=1e-5, **_LABELS),
    "modernbert": _case("modernbert", "ModernBertModel", **_MODERNBERT),
    "modernbert_older_keys": _case(
        "modernbert",
        "ModernBertModel",
        **{**_MODERNBERT, "num_hidden_layers": 5},
        global_attn_every_n_layers=2,
        global_rope_theta=5000.0,
        local_rope_theta=100.0,
        attention_bias=True,
        mlp_bias=True,
        norm_bias=True,
    ),
    "modernbert_scores": _case("modernbert", "ModernBertForSequenceClassification", **_MODERNBERT, **_LABELS),
    "modernbert_scores_by_mean": _case(
        "modernbert",
        "ModernBertForSequenceClassification",
        **_MODERNBERT,
        **_LABELS,
        classifier_pooling="mean",
        classifier_bias=True,
    ),
    "nomic": _case("nomic_bert", "NomicBertModel"),
    "nomic_scores": _case("nomic_bert", "NomicBertForSequenceClassification", **_LABELS),
}
"""Contents of config.json."""


def write(case: str, path: Path) -> Path:
    """A sentence-transformers directory, or the directory of a cross-encoder, with random weights."""
    path.mkdir(parents=True, exist_ok=True)
    values = CASES[case]
    (path / "config.json").write_text(json.dumps(values))
    config, family = configure(path, Settings(path / "config.json", values))
    bits = np.random.PCG64(5)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, shape in tensor_shapes(config):
        drawn = _uniform(bits, int(np.prod(shape))).reshape(shape)
        if "norm." in name:
            drawn = (1 if name.endswith("weight") else 0) + drawn / 4
        elif len(shape) == 2 and "embeddings" not in name and "relative" not in name:
            drawn *= np.float32(2 / np.sqrt(shape[1]))
        sources = source_names(family, name)
        outside = name.startswith("head.") and not sources[0].startswith("pooler")
        prefix = family.prefix if config.head and not outside else ""
        for source, part in zip(sources, np.split(drawn.astype(np.float32), len(sources)), strict=True):
            tensors[prefix + source] = np.ascontiguousarray(part)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    if not config.head:
        modules = [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        ]
        (path / "modules.json").write_text(json.dumps(modules))
        (path / "1_Pooling").mkdir(exist_ok=True)
        pooling = {"embedding_dimension": config.hidden_size, "pooling_mode": MODES}
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return path


def inputs(case: str) -> tuple[list[list[int]], list[int]]:
    """One input of each of `INPUT_LENGTHS`, any token of the vocabulary, and how many tokens its first segment has."""
    bits = np.random.PCG64(6)
    values = CASES[case]
    made = [(bits.random_raw(length) % values["vocab_size"]).astype(int).tolist() for length in INPUT_LENGTHS]
    pairs = values["model_type"] in ("bert", "nomic_bert") and values.get("type_vocab_size") != 1
    return made, [len(tokens) - len(tokens) // 3 if pairs else len(tokens) for tokens in made]


def _uniform(bits: np.random.PCG64, count: int) -> NDArray[np.float32]:
    """Multiples of 2**-23 in [-1, 1)."""
    return ((bits.random_raw(count) >> 40).astype(np.float64) / 2**23 - 1).astype(np.float32)


def make() -> dict[str, NDArray[np.float32]]:
    """The file's contents, by transformers in float32."""
    with tempfile.TemporaryDirectory() as directory:
        return {case: _by_transformers(case, write(case, Path(directory) / case)) for case in CASES}


def _by_transformers(case: str, path: Path) -> NDArray[np.float32]:
    import torch
    from transformers import AutoModel, AutoModelForSequenceClassification

    scores = CASES[case]["architectures"][0].endswith("ForSequenceClassification")
    kind = AutoModelForSequenceClassification if scores else AutoModel
    model, loading = kind.from_pretrained(path, attn_implementation="eager", output_loading_info=True)
    assert not [name for name in loading["missing_keys"] if "pooler" not in name], loading
    assert not loading["unexpected_keys"], loading
    model.eval()
    rows = []
    for tokens, first in zip(*inputs(case), strict=True):
        given = {"input_ids": torch.tensor([tokens])}
        if first < len(tokens):
            given["token_type_ids"] = (torch.arange(len(tokens)) >= first).long()[None]
        with torch.inference_mode():
            output = model(**given)
        rows.append(output.logits[0].numpy() if scores else _pooled(output.last_hidden_state[0].numpy()))
    return np.stack(rows)


def _pooled(states: NDArray[np.float32]) -> NDArray[np.float32]:
    weights = np.arange(1, len(states) + 1, dtype=np.float32)[:, None]
    return np.concatenate(
        [
            states[0],
            states.max(0),
            states.mean(0),
            states.sum(0) / np.sqrt(np.float32(len(states))),
            (states * weights).sum(0) / weights.sum(),
            states[-1],
        ]
    )


if __name__ == "__main__":
    np.savez_compressed(FILE, **make())
