"""Make sentencepieces.json.gz: small SentencePiece models of every kind, and what the library makes of many texts.

    python tests/references/sentencepieces.py

Needs sentencepiece; the tests that read the file do not. The texts are those of tokenizer_strings.py.
"""

from __future__ import annotations

import base64
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from references.tokenizer_strings import strings

FILE = Path(__file__).with_suffix(".json.gz")

_COMMON: dict[str, Any] = {"vocab_size": 2200, "character_coverage": 0.98, "minloglevel": 2, "num_threads": 1}
_AS_IT_IS: dict[str, Any] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "bpe", "byte_fallback": True, "split_digits": True, **_AS_IT_IS},
    "user-defined": {
        "model_type": "bpe",
        "byte_fallback": True,
        "user_defined_symbols": ["<think>", "[INST]"],
        **_AS_IT_IS,
    },
    "unigram-bytes": {"model_type": "unigram", "byte_fallback": True, **_AS_IT_IS},
    "unigram-no-prefix": {"model_type": "unigram", "add_dummy_prefix": False, **_AS_IT_IS},
    "unigram-spaces": {"model_type": "unigram", "normalization_rule_name": "identity"},
    "t5": {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
}


def read() -> dict[str, dict[str, Any]]:
    """For each kind the `model`, a file's bytes, and of every string its `ids` and what these are `decoded` to."""
    made: dict[str, dict[str, Any]] = json.loads(gzip.decompress(FILE.read_bytes()))
    for each in made.values():
        each["model"] = base64.b64decode(each["model"])
        pairs = zip(strings(), each["decoded"], strict=True)
        each["decoded"] = [text if decoded is None else decoded for text, decoded in pairs]
    return made


def answers(model: bytes) -> dict[str, Any]:
    """What the library makes of the strings; unknown tokens, which it shows as a mark, are left out of decoding."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    ids = [processor.encode(text) for text in strings()]
    known = ([id for id in each if not processor.is_unknown(id)] for each in ids)
    return {"ids": ids, "decoded": [processor.decode(each) for each in known]}


def _train(options: dict[str, Any]) -> bytes:
    from sentencepiece import SentencePieceTrainer

    with tempfile.TemporaryDirectory() as directory:
        corpus, prefix = Path(directory) / "corpus.txt", Path(directory) / "model"
        lines = (" ".join(text.splitlines()) for text in strings())
        corpus.write_text("\n".join(line for line in lines if line.strip()), "utf-8")
        SentencePieceTrainer.train(input=str(corpus), model_prefix=str(prefix), **_COMMON, **options)
        return prefix.with_suffix(".model").read_bytes()


def make() -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {}
    for name, options in KINDS.items():
        model = _train(options)
        made[name] = {"model": base64.b64encode(model).decode(), **answers(model)}
        pairs = zip(strings(), made[name]["decoded"], strict=True)
        made[name]["decoded"] = [None if decoded == text else decoded for text, decoded in pairs]
    return made


if __name__ == "__main__":
    content = json.dumps(make(), separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    FILE.write_bytes(gzip.compress(content.encode(), mtime=0))
