"""How an encoder's last hidden states become one vector, as the sentence-transformers files in its directory say.

Format: modules.json lists the modules in order, each with a directory of its own; see
https://sbert.net/docs/sentence_transformer/usage/custom_models.html.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.decoders.layout import check_finite
from arriero.models.encoders.encoder_config import Activation
from arriero.models.encoders.encoder_families import torch_activation
from arriero.models.files.json_files import Settings, brief, read_json, read_json_list
from arriero.models.files.safetensors_files import open_weights

_MODULES = "modules.json"
_KINDS = {"Pooling", "Dense", "Normalize", "Dropout"}

PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]

_OLDER_KEYS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""In the order in which several vectors are joined."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A linear layer on the pooled vector, [out, in], and what is applied after it."""

    weight: NDArray[np.float32] = field(repr=False)
    bias: NDArray[np.float32] | None = field(repr=False)
    activation: Activation
    residual: bool = False
    """Whether its input is added to its output; it then has that size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """From hidden states to a vector, and the texts that are put in front of an input; the default is the mean."""

    modes: tuple[PoolingMode, ...] = ("mean",)
    """Several give vectors that are joined."""
    steps: tuple[Dense | Literal["normalize"], ...] = ()
    """What follows, in order."""
    max_length: int | None = None
    """Tokens an input is meant to have at most, where the files say so."""
    prompts: Mapping[str, str] = field(default_factory=dict)
    """Texts to put in front of an input, by name."""
    default_prompt: str | None = None
    """Name of the prompt for inputs that ask for none."""
    similarity: str = "cosine"
    """What vectors are meant to be compared by: cosine, dot, euclidean or manhattan."""
    files: tuple[Path, ...] = ()
    """What it was read from."""

    def width(self, hidden_size: int) -> int:
        """Elements of the vector that comes out."""
        layers = [step for step in self.steps if isinstance(step, Dense)]
        return layers[-1].weight.shape[0] if layers else hidden_size * len(self.modes)


def read_pooling(path: Path, hidden_size: int) -> Pooling:
    """What the sentence-transformers files in `path` say; without them the mean, as sentence-transformers itself does.

    Raises:
        ModelLoadError: a file is missing or malformed.
        UnsupportedModel: there is a module that Arriero does not compute.
    """
    about_file = path / "config_sentence_transformers.json"
    about = Settings(about_file, read_json(about_file) if about_file.exists() else {})
    about.neutral("model_type", "SentenceTransformer", "CrossEncoder")
    modules = read_modules(path)
    poolings = [module for module in modules if module.kind == "Pooling"]
    modes: tuple[PoolingMode, ...] = _modes(poolings[0].settings, hidden_size) if poolings else ("mean",)
    pooling = Pooling(
        modes=modes,
        max_length=_max_length(path),
        prompts=_prompts(about),
        default_prompt=_default_prompt(about),
        similarity=str(about.values.get("similarity_fn_name") or "cosine"),
        files=tuple(file for file in (path / _MODULES, about_file) if file.exists()),
    )
    if poolings and poolings[0].settings.values.get("include_prompt") is False and any(pooling.prompts.values()):
        poolings[0].settings.neutral("include_prompt", True)
    for module in modules[modules.index(poolings[0]) + 1 :] if poolings else ():
        pooling = _followed_by(pooling, module, hidden_size)
    return pooling


@dataclass(frozen=True, slots=True)
class _Module:
    """One entry of modules.json."""

    kind: str
    """The last part of its class's name, e.g. `Pooling`."""
    directory: Path
    settings: Settings
    """Its config.json, empty where it has none."""


def read_modules(path: Path) -> list[_Module]:
    """The modules of a sentence-transformers directory, in order; none where modules.json is missing."""
    file = path / _MODULES
    modules = []
    for entry in read_json_list(file) if file.exists() else ():
        kind, place = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(place, str) or Path(place).is_absolute() or ".." in place:
            raise ModelLoadError(f"{file}: the entry {brief(entry)} names no module and directory.")
        if not kind.startswith("sentence_transformers."):
            raise UnsupportedModel(f"{file}: the module {brief(kind)} is code of the model's own; it is not run.")
        config = path / place / "config.json"
        settings = Settings(config, read_json(config) if place and config.exists() else {})
        modules.append(_Module(kind.rpartition(".")[2], path / place, settings))
    kinds = [module.kind for module in modules]
    if kinds and (kinds[0] != "Transformer" or kinds.count("Pooling") > 1 or set(kinds[1:]) - _KINDS):
        raise UnsupportedModel(f"{file}: Arriero does not compute the modules {', '.join(kinds)} in this order.")
    return modules


def _modes(settings: Settings, hidden_size: int) -> tuple[PoolingMode, ...]:
    size = settings.integer("embedding_dimension", settings.integer("word_embedding_dimension", hidden_size))
    if size != hidden_size:
        raise ModelLoadError(f"{settings.file}: pools vectors of {size} elements, the model's have {hidden_size}.")
    named = settings.values.get("pooling_mode")
    listed = [named] if isinstance(named, str) else named
    if listed is None:
        listed = [mode for key, mode in _OLDER_KEYS.items() if settings.boolean(key)] or ["mean"]
    if not isinstance(listed, list) or not listed or not all(mode in get_args(PoolingMode) for mode in listed):
        raise UnsupportedModel(f"{settings.file}: pools by {brief(named)}, which Arriero does not compute.")
    return tuple(listed)


def _followed_by(pooling: Pooling, module: _Module, hidden_size: int) -> Pooling:
    """The pooling with one more step."""
    for name in ("module_input_name", "module_output_name"):
        module.settings.neutral(name, "sentence_embedding")
    if module.kind == "Normalize":
        return replace(pooling, steps=(*pooling.steps, "normalize"))
    if module.kind == "Dropout":  # only has an effect in training
        return pooling
    weights = open_weights(module.directory)
    size = pooling.width(hidden_size)
    bias = module.settings.values.get("bias", True) is not False
    out = module.settings.integer("out_features")
    expected = {"linear.weight": (out, size), **({"linear.bias": (out,)} if bias else {})}
    if {name: weight.shape for name, weight in weights.items()} != expected:
        found = {name: list(weight.shape) for name, weight in weights.items()}
        raise ModelLoadError(f"{module.directory}: holds the tensors {brief(found)}, expected {brief(expected)}.")
    tensors = [check_finite(weight.file, name, weight.rows(0, out)) for name, weight in sorted(weights.items())]
    dense = Dense(
        weight=tensors[-1],
        bias=tensors[0] if bias else None,
        activation=torch_activation(
            module.settings, module.settings.values.get("activation_function", "torch.nn.modules.activation.Tanh")
        ),
        residual=module.settings.boolean("use_residual"),
    )
    files = {weight.file for weight in weights.values()} | {module.settings.file}
    return replace(pooling, steps=(*pooling.steps, dense), files=(*pooling.files, *sorted(files)))


def _max_length(path: Path) -> int | None:
    """sentence-transformers' own limit, or the tokenizer's; tokenizers without one say a very large number."""
    for name, key in (("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")):
        file = path / name
        value = read_json(file).get(key) if file.exists() else None
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
                raise ModelLoadError(f"{file}: {key} is {brief(value)}, expected a number of tokens.")
            return int(value)
    return None


def _prompts(about: Settings) -> dict[str, str]:
    prompts = about.values.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise about.unexpected("prompts", "a JSON object of texts")
    return {name: text or "" for name, text in prompts.items()}


def _default_prompt(about: Settings) -> str | None:
    name = about.values.get("default_prompt_name")
    if name is not None and (not isinstance(name, str) or name not in _prompts(about)):
        raise about.unexpected("default_prompt_name", "the name of one of the prompts")
    return name
