"""Which files of a Hugging Face repository serving needs: one form of the weights, and what goes with them.

The choice is made by names, before anything big is fetched.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from arriero.errors import ModelLoadError, UnsupportedModel
from arriero.models.files.json_files import read_json

_WITH_WEIGHTS = frozenset(
    {
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "vocab.txt",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "source.spm",
        "target.spm",
        "chat_template.jinja",
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
    }
)
_MODULE = re.compile(r"\d+_\w+")
"""A directory of one step of a sentence-transformers model, such as `1_Pooling`."""
_TEMPLATES = "additional_chat_templates"
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The forms of a model's weights, the one that is taken first in front; an index stands for the files that it names."""
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_QUANTISATION = re.compile(r"[-._]((?:UD-)?I?Q\d\w*|MXFP4\w*|TQ\d\w*|B?F16|F32)$", re.IGNORECASE)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
_OTHER_WEIGHTS = (".h5", ".msgpack", ".onnx", ".pt", ".pth", ".ckpt", ".npz", ".bin", ".safetensors", ".gguf")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository on a Hugging Face hub, and what of it is meant."""

    repository: str
    revision: str | None = None
    file: str | None = None
    """One GGUF file, by its path in the repository."""
    quantisation: str | None = None
    """One GGUF file, by the end of its name, e.g. `Q4_K_M`."""


_NAME = re.compile(
    r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)(?:/(?P<file>.+\.gguf)|:(?P<quantisation>[\w.-]+))?(?:@(?P<revision>.+))?",
    re.IGNORECASE,
)


def hub_name(text: str) -> HubName | None:
    """`org/name`, `org/name:Q4_K_M` or `org/name/file.gguf`, with or without `@revision`; None for other forms."""
    match = _NAME.fullmatch(text)
    if match is None or match["repository"].lower().endswith(".gguf"):
        return None
    return HubName(**match.groupdict())


def needed_files(name: HubName, files: Collection[str], *, code: bool = False) -> list[str]:
    """The files to fetch out of all the repository's `files`; the weights that an index names are yet to be added.

    A GGUF file comes alone, it has everything inside. `code` adds the Python files beside the weights.

    Raises:
        ModelLoadError: the GGUF file that was asked for is not there, or which of several is meant is unclear.
        UnsupportedModel: the repository has no weights in a form that is read.
    """
    if name.file or name.quantisation:
        return [_gguf_file(name, files)]
    weights = [*_of_one_form(files, _WEIGHTS), *_of_one_form(files, _ADAPTER_WEIGHTS)]
    if not any("/" not in file or _MODULE.fullmatch(file.partition("/")[0]) for file in weights):
        return [_only_gguf_file(name, files)]
    return sorted({*weights, *(file for file in files if _goes_with_weights(file, code))})


def indexed_files(file: Path, index: str) -> set[str]:
    """The files of weights that an index names, by their paths in the repository, where it is called `index`.

    Raises `ModelLoadError` where `file`, the index on this machine, is no index.
    """
    listed = read_json(file).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(each, str) for each in listed.values()):
        raise ModelLoadError(f"{file}: weight_map does not map tensor names to files beside it.")
    parent = index.rpartition("/")[0]
    return {f"{parent}/{each}".removeprefix("/") for each in listed.values()}


def _goes_with_weights(file: str, code: bool) -> bool:
    directory, _, base = file.rpartition("/")
    if directory == _TEMPLATES:
        return base.endswith(".jinja")
    if directory and not _MODULE.fullmatch(directory):
        return False
    return base in _WITH_WEIGHTS or (code and base.endswith(".py"))


def _of_one_form(files: Collection[str], forms: Iterable[str]) -> list[str]:
    """The weights in the first of `forms` that there are, in the repository's root and in each module's directory."""
    directories = {"", *(directory for file in files if _MODULE.fullmatch(directory := file.rpartition("/")[0]))}
    chosen = []
    for directory in sorted(directories):
        paths = (f"{directory}/{form}".removeprefix("/") for form in forms)
        chosen += [path for path in paths if path in files][:1]
    return chosen


def _gguf_file(name: HubName, files: Collection[str]) -> str:
    ggufs = _ggufs(files)
    if name.file:
        found = [file for file in ggufs if file == name.file]
        wanted = name.file
    else:
        ending = re.compile(rf"[-._]{re.escape(name.quantisation or '')}$", re.IGNORECASE)
        found = [file for file in ggufs if ending.search(_stem(file))]
        wanted = f"GGUF file that ends in {name.quantisation}"
    if len(found) != 1:
        count = "no" if not found else "more than one"
        raise ModelLoadError(f"{name.repository} has {count} {wanted}.{_choices(name, found or ggufs)}")
    return _whole(name, found[0])


def _only_gguf_file(name: HubName, files: Collection[str]) -> str:
    ggufs = _ggufs(files)
    if len(ggufs) == 1:
        return _whole(name, ggufs[0])
    if ggufs:
        raise ModelLoadError(f"{name.repository} holds {len(ggufs)} GGUF files.{_choices(name, ggufs)}")
    others = sorted(file for file in files if file.lower().endswith(_OTHER_WEIGHTS))
    held = f"it holds {_listed(others)}" if others else "it holds no weights at all"
    raise UnsupportedModel(
        f"{name.repository}: {held}; Arriero reads model.safetensors, pytorch_model.bin and GGUF files."
    )


def _ggufs(files: Iterable[str]) -> list[str]:
    """Models only: the projector of a model that sees is a file of its own, and an importance matrix is no model."""
    aside = ("mmproj", "imatrix")
    return sorted(
        file
        for file in files
        if file.lower().endswith(".gguf") and not any(word in _stem(file).lower() for word in aside)
    )


def _whole(name: HubName, file: str) -> str:
    if _SPLIT.search(_stem(file)):
        raise UnsupportedModel(
            f"{name.repository}: {file} is one part of a model, which Arriero does not put together; "
            "fetch all parts and merge them with llama-gguf-split --merge, or choose a file that is not split."
        )
    return file


def _choices(name: HubName, ggufs: list[str]) -> str:
    """How to name each of the files; by the end of its name where that is enough."""
    if not ggufs:
        return " It has no GGUF files."
    ends = [match[1] if (match := _QUANTISATION.search(_stem(file))) else None for file in ggufs]
    tags = [f":{end}" if end is not None and ends.count(end) == 1 else None for end in ends]
    names = [tag or f"/{file}" for tag, file in zip(tags, ggufs, strict=True)]
    return f" Say which, as in {name.repository}{names[0]}: {_listed(names, 30)}."


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _stem(file: str) -> str:
    return file.rpartition("/")[2][: -len(".gguf")]
