"""An encoder's directory: configuration, weights, and how its vectors are pooled."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.decoders.layout import check_finite, identity
from arriero.models.encoders.encoder_config import Activation, EncoderConfig, check_config, tensor_shapes
from arriero.models.encoders.encoder_families import Family, family_of, head_of, torch_activation
from arriero.models.encoders.pooling import Pooling, read_modules, read_pooling
from arriero.models.files.json_files import Settings, read_json
from arriero.models.files.safetensors_files import Weight, open_weights

_HEAD = "ForSequenceClassification"


def open_encoder(path: Path) -> EncoderCheckpoint:
    """The encoder in the Hugging Face or sentence-transformers directory at `path`.

    Names, types and shapes of all tensors are checked here; the weights themselves are read when asked for.

    Raises:
        UnsupportedModel: a family, head or module that Arriero does not compute.
        ModelLoadError: a file is missing, damaged or of another shape.
    """
    file = path / "config.json"
    return EncoderCheckpoint(path, *configure(path, Settings(file, read_json(file))))


def configure(path: Path, settings: Settings) -> tuple[EncoderConfig, Family]:
    """What config.json, in `settings`, and the files beside it in `path` make of the model; see `open_encoder`."""
    family = family_of(settings)
    config = check_config(settings.file, family.configure(settings))
    if not _scores(path, settings):
        return config, family
    head = head_of(settings, family)
    named = _named_activation(path)
    return replace(config, head=head if named is None else replace(head, score_activation=named)), family


class EncoderCheckpoint:
    """Weights on disk, read one tensor at a time by the names in `encoder_config`."""

    path: Path
    config: EncoderConfig
    pooling: Pooling
    identity: str
    """Hexadecimal digest that changes when a weight, the configuration or the pooling could have changed."""

    def __init__(self, path: Path, config: EncoderConfig, family: Family) -> None:
        self.path = path
        self.config = config
        self.pooling = read_pooling(path, config.hidden_size)
        self._sources = _sources(path, config, family)
        files = {weight.file for weights in self._sources.values() for weight in weights}
        files |= {path / "config.json", *self.pooling.files}
        self.identity = identity(sorted(files), config, self.pooling.modes, self.pooling.steps)

    @property
    def task(self) -> Literal["embed", "score"]:
        """Whether it gives a vector for what an input means, or the scores of a classification head."""
        return "score" if self.config.head else "embed"

    @property
    def context(self) -> int:
        """Tokens an input may have, special tokens included: as the files say, at most what the positions reach."""
        return min(self.config.context, self.pooling.max_length or self.config.context)

    @property
    def width(self) -> int:
        """Elements of the vectors: the size of an embedding, or the number of labels."""
        return len(self.config.head.labels) if self.config.head else self.pooling.width(self.config.hidden_size)

    @property
    def parameters(self) -> int:
        """Weights of the model itself."""
        return sum(math.prod(shape) for _, shape in tensor_shapes(self.config))

    @property
    def source_format(self) -> str:
        """The type that most of the weights are stored in, e.g. `F32`."""
        counts: Counter[str] = Counter()
        for weights in self._sources.values():
            for weight in weights:
                counts[weight.dtype] += math.prod(weight.shape)
        return counts.most_common(1)[0][0]

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor by our name, float32; raises `ModelLoadError` where it is not there or holds no finite numbers."""
        if name not in self._sources:
            raise ModelLoadError(f"{self.path}: has no tensor {name}.")
        parts = [check_finite(each.file, each.name, each.rows(0, each.shape[0])) for each in self._sources[name]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _scores(path: Path, settings: Settings) -> bool:
    """Whether its classification head is what it is for: not where sentence-transformers pools it."""
    listed = settings.values.get("architectures")
    architecture = str(listed[0]) if isinstance(listed, list) and listed else ""
    if any(module.kind == "Pooling" for module in read_modules(path)):
        return False
    if architecture.endswith(("ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")):
        raise UnsupportedModel(
            f"{settings.file}: {architecture} is for a task that Arriero does not serve; it embeds or scores texts."
        )
    return architecture.endswith(_HEAD)


def _named_activation(path: Path) -> Activation | None:
    """What config_sentence_transformers.json says is applied to the logits."""
    file = path / "config_sentence_transformers.json"
    about = Settings(file, read_json(file) if file.exists() else {})
    named = about.values.get("activation_fn")
    return None if named is None else torch_activation(about, named)


def source_names(family: Family, name: str) -> list[str]:
    """What a family's checkpoints call the tensors that make up ours of this name, without its prefix."""
    module, _, kind = name.rpartition(".")
    layer = re.match(r"layers\.(\d+)\.", module)
    if layer is None:
        return [f"{source}.{kind}" for source in family.modules[module]]
    sources = family.modules[f"layers.N.{module[layer.end() :]}"]
    return [f"{source.replace('.N.', f'.{layer[1]}.')}.{kind}" for source in sources]


def _sources(path: Path, config: EncoderConfig, family: Family) -> dict[str, tuple[Weight, ...]]:
    """By our name the tensors that make each up; raises unless they are exactly those that `config` asks for."""
    expected = {name: source_names(family, name) for name, _ in tensor_shapes(config)}
    used = {source for sources in expected.values() for source in sources}

    def ignored(name: str) -> bool:
        plain = _plain(name, family)
        return plain not in used and plain.startswith(family.unused)

    weights = {_plain(name, family): weight for name, weight in open_weights(path, ignored).items()}
    for name in weights:
        if name not in used:
            raise ModelLoadError(
                f"{path}: tensor {name} has no place in a {config.family} model of this configuration."
            )
    result = {}
    for name, shape in tensor_shapes(config):
        part = (shape[0] // len(expected[name]), *shape[1:])
        for source in expected[name]:
            if source not in weights:
                raise ModelLoadError(f"{path}: tensor {source} is missing, expected shape {list(part)}.")
            if weights[source].shape != part:
                raise ModelLoadError(
                    f"{path}: tensor {source} has shape {list(weights[source].shape)}, "
                    f"the configuration implies {list(part)}."
                )
        result[name] = tuple(weights[source] for source in expected[name])
    return result


def _plain(name: str, family: Family) -> str:
    """A tensor's name without the prefix that checkpoints with a head have; the oldest ones name norms otherwise."""
    name = name.removeprefix(family.prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
