"""A LoRA adapter in PEFT's format: low-rank changes to a base model's linear layers, and what it has of its own.

    adapter_config.json            see `arriero.models.adapters.lora_config`
    adapter_model.safetensors      tensors named as in the base model, behind `base_model.model.`:
        <linear>.lora_A.weight     [rank, in]
        <linear>.lora_B.weight     [out, rank]      weight + scaling * B A
        <embedding>.lora_embedding_A, _B            [rank, vocabulary], [hidden, rank]: table + scaling * (B A)'
        <module>.weight            a whole embedding or head: named by modules_to_save, or of a resized vocabulary
        <module>.base_layer.weight, .original_module.weight         the same, where it is changed or replaced as well

Files are checked when they are opened: every tensor that the configuration implies must be there in the base model's
sizes, and no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.adapters.lora_config import CONFIG_FILE, EMBEDDING, HEAD, read_lora_config
from arriero.models.architecture import Checkpoint, DecoderConfig
from arriero.models.decoders.layout import FUSED, check_finite, tensor_shapes
from arriero.models.files.safetensors_files import Weight, open_tensors

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLED_FILE = "adapter_model.bin"
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_EMBEDDING_A, _EMBEDDING_B = f"{EMBEDDING}.lora_embedding_A", f"{EMBEDDING}.lora_embedding_B"
_OWN, _REPLACED, _UNDERLYING = ".modules_to_save.weight", ".original_module.weight", ".base_layer.weight"


@dataclass(frozen=True, slots=True)
class Delta:
    """What is added to a weight [out, in]: `out` times `into`."""

    into: NDArray[np.float32]
    """A, float32 [rank, in]."""
    out: NDArray[np.float32]
    """B times the scaling, float32 [out, rank]."""


class Adapter:
    """A base model as an adapter changes it: a `Checkpoint` that has the adapter's embeddings and head.

    Its linear layers are the base's; `delta` tells what is to be added to them.
    """

    path: Path
    config: DecoderConfig
    """The base's, with the adapter's vocabulary; never tied where the adapter has an embedding or a head of its own."""
    identity: str
    """Digest of the adapter's files; the base is not part of it."""
    has_own_embeddings: bool
    """Whether its embeddings are others than the base's."""
    has_own_head: bool

    def __init__(self, path: Path, base: Checkpoint) -> None:
        """Raises `ModelLoadError` if it is damaged or made for another base, its leaf if it is not computed here."""
        self.path = path
        self._base = base
        self._lora = read_lora_config(path)
        self._file = _weights_file(path)
        self._tensors = {name.removeprefix(_PREFIX): weight for name, weight in open_tensors(self._file).items()}
        self._tables = {module: self._table(module) for module in (EMBEDDING, HEAD)}
        self._fused = _fused(base.config)
        self._modules = frozenset(self._changed_modules())
        self._check()
        self.has_own_embeddings = EMBEDDING in self._modules or self._tables[EMBEDDING] is not None
        self.has_own_head = HEAD in self._modules or self._tables[HEAD] is not None
        rows = self._rows(EMBEDDING)
        tied = base.config.tie_embeddings and not (self.has_own_embeddings or self.has_own_head)
        self.config = replace(base.config, vocab_size=rows, tie_embeddings=tied)
        # Of their contents: adapters are alike in size, and unpacked archives in time.
        self.identity = _digest([self._lora.file, self._file])

    def delta(self, module: str) -> Delta | None:
        """The change to a linear layer, by its weight's name without `.weight`; None where it is the base's."""
        module, rows = self._fused.get(module, (module, slice(None)))
        if module not in self._modules or module == EMBEDDING:
            return None
        into, out = (_read(self._tensors[module + part]) for part in (_A, _B))
        return Delta(into, out[rows] * np.float32(self._lora.scaling_of(module)))

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `Checkpoint.tensor`; embeddings and head with everything that the adapter does to them."""
        module = name.removesuffix(".weight")
        if module not in self._tables:
            return self._base.tensor(name)
        own = self._tables[module]
        values = self._base_table(module) if own is None else _read(own)
        if module not in self._modules:
            return values
        if module == EMBEDDING:
            into, out = _read(self._tensors[_EMBEDDING_A]), _read(self._tensors[_EMBEDDING_B])
            return values + (out @ into).T * np.float32(self._lora.scaling_of(module))
        delta = self.delta(module)
        assert delta
        return values + delta.out @ delta.into

    def __contains__(self, name: str) -> bool:
        return name in self._base or name == f"{HEAD}.weight"

    def _changed_modules(self) -> Iterator[str]:
        """The modules with low-rank matrices."""
        for module in _module_shapes(self._base.config):
            parts = (_EMBEDDING_A,) if module == EMBEDDING else (module + _A,)
            changes = self._lora.changes(module)
            if any(part in self._tensors for part in parts) if changes is None else changes:
                yield module

    def _table(self, module: str) -> Weight | None:
        """The adapter's own embedding or head; None for the base's."""
        if module in self._lora.replaced:
            return self._expect(f"{module}.weight")
        if own := self._stored_base(module):
            return own
        # Where the base has one table for both, whatever replaces one of them replaces the other.
        other = HEAD if module == EMBEDDING else EMBEDDING
        return self._stored_base(other) if self._base.config.tie_embeddings else None

    def _stored_base(self, module: str) -> Weight | None:
        """What the file has in place of the base's own table, because that was resized or is changed."""
        names = [module + _REPLACED] if module in self._lora.replaced else [module + _UNDERLYING, f"{module}.weight"]
        return next((self._tensors[name] for name in names if name in self._tensors), None)

    def _base_table(self, module: str) -> NDArray[np.float32]:
        tied = self._base.config.tie_embeddings
        return self._base.tensor(f"{EMBEDDING if tied else module}.weight")

    def _rows(self, module: str) -> int:
        own = self._tables[module]
        return self._base.config.vocab_size if own is None else own.shape[0]

    # What has to be true of the file

    def _check(self) -> None:
        hidden = self._base.config.hidden_size
        known = {module + part for module in self._tables for part in (".weight", _OWN, _REPLACED, _UNDERLYING)}
        for own in self._tables.values():
            if own is not None and (len(own.shape) != 2 or own.shape[1] != hidden):
                raise self._misshapen(own, f"[vocabulary, {hidden}]")
        rows, head_rows = self._rows(EMBEDDING), self._rows(HEAD)
        if rows != head_rows:
            raise ModelLoadError(
                f"{self._file}: with this adapter the embeddings have {rows} tokens and the head {head_rows}; "
                f"the base model has {self._base.config.vocab_size}."
            )
        if self._lora.ties_weights and self._base.config.tie_embeddings and self._modules & self._tables.keys():
            raise UnsupportedModel(
                f"{self._lora.file}: ensure_weight_tying with low-rank changes to embeddings is not computed here."
            )
        for module in sorted(self._modules):
            known.update(self._check_matrices(module, rows))
        for name, weight in self._tensors.items():
            if name not in known:
                raise ModelLoadError(
                    f"{self._file}: tensor {weight.name} is not one that {CONFIG_FILE} implies for this base model."
                )

    def _check_matrices(self, module: str, vocabulary: int) -> tuple[str, str]:
        rank = self._lora.rank_of(module)
        size_out, size_in = _module_shapes(self._base.config)[module]
        if module == HEAD:
            size_out = vocabulary
        names = (module + _A, module + _B)
        shapes = ((rank, size_in), (size_out, rank))
        if module == EMBEDDING:
            names, shapes = (_EMBEDDING_A, _EMBEDDING_B), ((rank, vocabulary), (size_in, rank))
        for name, shape in zip(names, shapes, strict=True):
            weight = self._expect(name)
            if weight.shape != shape:
                raise self._misshapen(weight, str(list(shape)))
        return names

    def _expect(self, name: str) -> Weight:
        if name not in self._tensors:
            raise ModelLoadError(f"{self._file}: tensor {_PREFIX}{name} is missing, which {CONFIG_FILE} implies.")
        return self._tensors[name]

    def _misshapen(self, weight: Weight, expected: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self._file}: tensor {weight.name} has shape {list(weight.shape)}, rank and base model imply {expected}. "
            "Is it the base model that the adapter was made for?"
        )


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _read(weight: Weight) -> NDArray[np.float32]:
    return check_finite(weight.file, weight.name, weight.rows(0, weight.shape[0]))


def _module_shapes(config: DecoderConfig) -> Mapping[str, tuple[int, int]]:
    """[out, in] of everything that can have low-rank matrices, by its name in the base model."""
    shapes = {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in tensor_shapes(config)
        if name.endswith(".weight") and len(shape) == 2
    }
    for part, (whole, rows) in _fused(config).items():
        shapes[whole] = (rows.stop, shapes.pop(part)[1])  # the last part ends where the whole does
    return {HEAD: (config.vocab_size, config.hidden_size), **shapes}


def _fused(config: DecoderConfig) -> Mapping[str, tuple[str, slice]]:
    """The modules that the base model has as rows of one, in order: the name of that, and which rows."""
    rows = {name.removesuffix(".weight"): shape[0] for name, shape in tensor_shapes(config)}
    result = {}
    for layer in range(config.num_layers):
        prefix = f"model.layers.{layer}."
        for whole, parts in FUSED.get(config.family, {}).items():
            first = 0
            for part in parts:
                count = rows[prefix + part]
                result[prefix + part] = (prefix + whole, slice(first, first + count))
                first += count
    return result


def _weights_file(path: Path) -> Path:
    if (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE
    if (path / _PICKLED_FILE).is_file():
        raise UnsupportedModel(
            f"{path / _PICKLED_FILE}: is pickled, which only torch reads safely: pip install 'arriero[torch]', or save "
            "the adapter as safetensors."
        )
    raise ModelLoadError(f"{path}: has no {WEIGHTS_FILE}.")
