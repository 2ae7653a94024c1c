"""What an adapter_config.json says: which layers a LoRA adapter changes, at which rank, how strongly.

The format and its rules of matching are those of PEFT 0.21 (`peft.LoraConfig`, `peft.tuners.tuners_utils`). A field
that asks for something that Arriero does not compute is refused by name, whatever version it comes from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.files.json_files import Settings, read_json

CONFIG_FILE = "adapter_config.json"
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
Number = TypeVar("Number", int, float)

_READ = frozenset(
    {
        "peft_type",
        "task_type",
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "modules_to_save",
        "ensure_weight_tying",
        "init_lora_weights",
        "bias",
    }
)
_WITHOUT_EFFECT = frozenset(
    {
        # Where it comes from.
        "auto_mapping",
        "base_model_name_or_path",
        "peft_version",
        "revision",
        # How it was trained or initialised.
        "inference_mode",
        "lora_dropout",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "velora_config",
        "qalora_group_size",  # of no effect without use_qalora, which is refused
        # How the base stores its weights or where they lie; PEFT itself sets fan_in_fan_out right for linear layers.
        "fan_in_fan_out",
        "megatron_core",
        "runtime_config",
    }
)
_HARMLESS_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base model's own weights as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """The part of a configuration that says what is computed."""

    file: Path
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    """By pattern, for modules whose rank is another."""
    alphas: Mapping[str, float]
    rank_stabilised: bool
    """Divide alpha by the root of the rank (Kalajdzievski 2023)."""
    targets: tuple[str, ...] | str | None
    """Names or one pattern; None where the file leaves it to its weights."""
    excluded: tuple[str, ...] | str
    layers: frozenset[int] | None
    layer_lists: tuple[str, ...]
    replaced: frozenset[str]
    """Modules that the adapter has whole ones of its own of: `EMBEDDING`, `HEAD`."""
    ties_weights: bool

    def changes(self, module: str) -> bool | None:
        """Whether a linear layer or the embedding gets low-rank matrices; None: the weights tell."""
        if module in self.replaced or _named(self.excluded, module):
            return False
        if self.targets is None:
            return None
        if isinstance(self.targets, str):
            if self.targets.lower() == "all-linear":
                return module not in (EMBEDDING, HEAD)
            return _named(self.targets, module)
        return _named(self.targets, module) and self._in_layers(module)

    def rank_of(self, module: str) -> int:
        """Rows of its A and columns of its B."""
        return _first_fit(self.ranks, module, self.rank)

    def scaling_of(self, module: str) -> float:
        """What B times A is multiplied by."""
        rank = self.rank_of(module)
        return _first_fit(self.alphas, module, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)

    def _in_layers(self, module: str) -> bool:
        if self.layers is None:
            return True
        for name in self.layer_lists or ("[^.]*",):
            # The first number in the name is the layer's. Without a pattern, PEFT wants something before the list.
            start = rf"(?:^|.*?\.){name}" if self.layer_lists else rf".*?\.{name}"
            if found := re.match(rf"{start}\.(\d+)\.", module):
                return int(found[1]) in self.layers
        return False


def read_lora_config(directory: Path) -> LoraConfig:
    """The configuration of the adapter in a directory.

    Raises:
        ModelLoadError: it is missing or malformed.
        UnsupportedModel: it asks for something that Arriero does not compute; the message names the field.
    """
    file = directory / CONFIG_FILE
    if not file.is_file():
        raise ModelLoadError(f"{directory}: has no {CONFIG_FILE}, so it is not a LoRA adapter in PEFT's format.")
    settings = Settings(file, read_json(file))
    _refuse_others(settings)
    replaced = frozenset(_replaced(settings, name) for name in _texts(settings, "modules_to_save"))
    return LoraConfig(
        file=file,
        rank=settings.integer("r"),
        alpha=settings.number("lora_alpha"),
        ranks=_by_name(settings, "rank_pattern", Settings.integer),
        alphas=_by_name(settings, "alpha_pattern", Settings.number),
        rank_stabilised=settings.boolean("use_rslora"),
        targets=_names(settings, "target_modules") or None,
        excluded=_names(settings, "exclude_modules"),
        layers=_layers(settings),
        layer_lists=_layer_lists(settings),
        replaced=replaced,
        ties_weights=settings.boolean("ensure_weight_tying"),
    )


def _refuse_others(settings: Settings) -> None:
    settings.neutral("peft_type", "LORA")
    settings.neutral("task_type", "CAUSAL_LM")
    settings.neutral("bias", "none")
    settings.neutral("init_lora_weights", *_HARMLESS_STARTS)
    if settings.values.get("use_dora"):
        raise UnsupportedModel(
            f"{settings.file}: use_dora is true; Arriero does not compute DoRA. Merge the adapter into its base model "
            "with PEFT's merge_and_unload, and serve the result."
        )
    for name in settings.values.keys() - _READ - _WITHOUT_EFFECT:
        settings.neutral(name, False, [], {}, "")


def _replaced(settings: Settings, name: str) -> str:
    """The module that one of modules_to_save means, as PEFT finds it: by the end of its name."""
    for module in (EMBEDDING, HEAD):
        if module == name or module.endswith(f".{name}"):
            return module
    raise UnsupportedModel(
        f"{settings.file}: modules_to_save has '{name}'; of its own an adapter can have embed_tokens and lm_head here."
    )


def _names(settings: Settings, name: str) -> tuple[str, ...] | str:
    """A list of names, or a pattern, which must compile."""
    value = settings.values.get(name)
    if not isinstance(value, str):
        return _texts(settings, name)
    _check_pattern(settings, name, value)
    return value


def _texts(settings: Settings, name: str) -> tuple[str, ...]:
    value = settings.values.get(name)
    listed = [] if value is None else value
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise settings.unexpected(name, "a list of names")
    return tuple(listed)


def _by_name(settings: Settings, name: str, read: Callable[[Settings, str], Number]) -> dict[str, Number]:
    """A table of numbers by the patterns of the names that they are for."""
    table = settings.within(name)
    for pattern in table.values:
        _check_pattern(settings, name, pattern)
    return {pattern: read(table, pattern) for pattern in table.values}


def _layers(settings: Settings) -> frozenset[int] | None:
    value = settings.values.get("layers_to_transform")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(layer) is int for layer in listed):
        raise settings.unexpected("layers_to_transform", "layer numbers")
    return frozenset(listed) or None


def _layer_lists(settings: Settings) -> tuple[str, ...]:
    value = settings.values.get("layers_pattern")
    listed = ((value,) if value else ()) if isinstance(value, str) else _texts(settings, "layers_pattern")
    for pattern in listed:
        _check_pattern(settings, "layers_pattern", pattern)
    return listed


def _check_pattern(settings: Settings, name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ModelLoadError(
            f"{settings.file}: {name} has '{pattern}', which is no regular expression: {error}."
        ) from error


def _named(names: tuple[str, ...] | str, module: str) -> bool:
    """Whether one pattern fits all of a module's name, or one of several names ends it."""
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _first_fit(table: Mapping[str, Number], module: str, default: Number) -> Number:
    """The value of the first pattern that fits the end of a module's name."""
    for pattern, value in table.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
