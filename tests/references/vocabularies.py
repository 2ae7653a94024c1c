"""Small vocabularies of the kinds that models have, as Hugging Face directories and as GGUF files.

    python tests/references/vocabularies.py

makes vocabularies.json.gz with transformers; `unpack` turns that file into model files and needs neither it nor torch.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json.gz")

PRE_TOKENIZERS = (
    "default",
    "gpt-2",
    "smollm",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "tekken",
    "gpt-4o",
    "falcon",
    "bloom",
    "viking",
    "deepseek-coder",
    "deepseek-llm",
    "deepseek-v3",
)
"""One name for each expression that the GGUF files of byte-level vocabularies can ask for."""

_SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_THINK = "<think>"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def unpack(directory: Path, *, tensors: bool = False) -> dict[str, Path]:
    """Write every vocabulary under `directory`; returns the path of each by name.

    Only with `tensors` are the GGUF files such that llama.cpp loads them.
    """
    made = json.loads(gzip.decompress(FILE.read_bytes()))
    paths = {}
    for name, files in made["directories"].items():
        paths[name] = directory / name
        paths[name].mkdir()
        for file, content in files.items():
            (paths[name] / file).write_text(json.dumps(content), "utf-8")
    for name, fields in made["gguf"].items():
        paths[name] = directory / f"{name}.gguf"
        write_gguf(paths[name], fields, tensors=tensors)
    for pre in PRE_TOKENIZERS:
        paths[f"pre-{pre}"] = directory / f"pre-{pre}.gguf"
        fields = {**made["gguf"]["byte-level-gguf"], "tokenizer.ggml.pre": pre}
        write_gguf(paths[f"pre-{pre}"], fields, tensors=tensors)
    return paths


def write_gguf(path: Path, fields: dict[str, Any], *, tensors: bool = False) -> None:
    """A GGUF file with this metadata, and on demand with the weights of the smallest model that llama.cpp takes."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    if tensors:
        _add_model(writer, len(fields["tokenizer.ggml.tokens"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_model(writer: Any, vocab_size: int) -> None:
    import numpy as np

    size = 32
    writer.add_context_length(2048)
    writer.add_embedding_length(size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(size)
    writer.add_head_count(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(size // 2)
    layer = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{name}.weight": (size, size) for name in layer}
    shapes |= {f"{name}.weight": (size,) for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    shapes |= {"token_embd.weight": (vocab_size, size)}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.ones(shape, np.float32))


def make() -> dict[str, Any]:
    """Train the vocabularies and have transformers save them."""
    byte_level, sentencepiece = _byte_level(), _sentencepiece()
    tokens, merges = byte_level["tokens"], byte_level["merges"]
    kinds = [3] * len(_SPECIAL) + [4] + [1] * (len(tokens) - len(_SPECIAL) - 1)
    common = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.eot_token_id": 4}
    pieces = sentencepiece["tokens"]
    piece_kinds = [2, 3, 3, 3, 3, 4] + [6] * 256 + [1] * (len(pieces) - 262)
    return {
        "directories": {name: _saved(tokenizer) for name, tokenizer in _tokenizers(byte_level, sentencepiece)},
        "gguf": {
            "byte-level-gguf": {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": "smollm",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.token_type": kinds,
                "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
                **common,
            },
            **{
                name: {
                    "tokenizer.ggml.model": "llama",
                    "tokenizer.ggml.tokens": pieces,
                    "tokenizer.ggml.token_type": piece_kinds,
                    "tokenizer.ggml.scores": [float(-id) for id in range(len(pieces))],
                    **common,
                    **options,
                }
                for name, options in (
                    ("sentencepiece-gguf", {}),
                    (
                        "sentencepiece-no-prefix-gguf",
                        {
                            "tokenizer.ggml.add_space_prefix": False,
                            "tokenizer.ggml.add_bos_token": False,
                            "tokenizer.ggml.add_eos_token": True,
                        },
                    ),
                )
            },
        },
    }


def _corpus() -> list[str]:
    from references.tokenizer_strings import strings

    return [text for text in strings() if "<" not in text and "|" not in text]


def _byte_level() -> dict[str, Any]:
    """A vocabulary whose tokens go across words, digits and spaces, so that it matters where a text is cut."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=[*_SPECIAL, _THINK],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=12,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"tokens": sorted(model["vocab"], key=model["vocab"].get), "merges": model["merges"]}


def _sentencepiece() -> dict[str, Any]:
    """Bytes first, then merged pieces in order of merging, then single characters, as SentencePiece lays them out."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    trainer = trainers.BpeTrainer(vocab_size=1200, limit_alphabet=300, max_token_length=12, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    learned = sorted(model["vocab"], key=model["vocab"].get)
    characters = [token for token in learned if len(token) == 1]
    merged = [token for token in learned if len(token) > 1]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return {"tokens": [*_SPECIAL, _THINK, *bytes_, *merged, *characters], "merges": model["merges"]}


def _tokenizers(byte_level: dict[str, Any], sentencepiece: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

    ids = {token: id for id, token in enumerate(byte_level["tokens"])}
    merges = [tuple(merge) for merge in byte_level["merges"]]
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special = [AddedToken(token, special=True, normalized=False) for token in _SPECIAL]
    think = AddedToken(_THINK, special=False, normalized=False)

    def finished(tokenizer: Tokenizer, added: list[AddedToken], **options: Any) -> PreTrainedTokenizerFast:
        tokenizer.add_tokens([*added, think])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, **options)

    smol = Tokenizer(models.BPE(vocab=ids, merges=merges))
    smol.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    smol.decoder = decoders.ByteLevel()
    yield "smollm-like", finished(smol, special)

    llama3 = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=True))
    llama3.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    llama3.decoder = decoders.ByteLevel()
    llama3.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    yield "llama3-like", finished(llama3, special)

    qwen = Qwen2Tokenizer(vocab=ids, merges=merges, unk_token=None, eos_token="<|im_end|>", pad_token="</s>")
    qwen.add_special_tokens({"additional_special_tokens": ["<s>", "<|im_start|>"]})
    qwen.add_tokens([think])
    yield "qwen2", qwen

    pieces = {token: id for id, token in enumerate(sentencepiece["tokens"])}
    piece_merges = [tuple(merge) for merge in sentencepiece["merges"]]
    llama = LlamaTokenizer(vocab=pieces, merges=piece_merges, add_bos_token=True)
    llama.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    llama.add_tokens([think])
    yield "llama", llama

    def legacy() -> Tokenizer:
        tokenizer = Tokenizer(
            models.BPE(vocab=pieces, merges=piece_merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return tokenizer

    yield "llama-legacy", finished(legacy(), special, add_bos_token=True, add_eos_token=True)
    odd = [AddedToken(token, special=True, normalized=True) for token in _SPECIAL[:3]]
    odd += [AddedToken(token, special=True, lstrip=True, rstrip=True) for token in _SPECIAL[3:]]
    yield "llama-odd", finished(legacy(), odd)

    unigram = Tokenizer(
        models.Unigram([(token, -float(i) / 100) for i, token in enumerate(sentencepiece["tokens"])], 0, True)
    )
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    yield "unigram", finished(unigram, special)


def _saved(tokenizer: Any) -> dict[str, Any]:
    """What transformers writes into a model's directory, by file name."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        files = {path.name: json.loads(path.read_text("utf-8")) for path in Path(directory).iterdir()}
    return {**files, "config.json": {"model_type": "llama", "eos_token_id": 2}}


if __name__ == "__main__":
    FILE.write_bytes(gzip.compress(json.dumps(make(), ensure_ascii=False, sort_keys=True).encode(), mtime=0))
