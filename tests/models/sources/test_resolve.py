from __future__ import annotations

from pathlib import Path

import pytest

from arriero.errors import ModelLoadError
from arriero.models.checkpoint import open_checkpoint
from arriero.models.decoders.description import describe
from arriero.models.sources import resolve as module
from arriero.models.sources.catalog import DEFAULT_MODEL
from arriero.models.sources.resolve import Resolved, resolve


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The catalog names that were asked for; their files are not fetched."""
    names: list[str] = []

    def fetch(name: str, cache: Path, progress: object) -> Path:
        names.append(name)
        return cache / name

    monkeypatch.setattr(module, "fetch", fetch)
    return names


def test_default_and_catalog_names_in_any_case(fetched: list[str], tmp_path: Path) -> None:
    expected = Resolved("SmolLM2-135M-Instruct", tmp_path / "SmolLM2-135M-Instruct")
    assert resolve(None, tmp_path) == expected
    assert resolve("SmolLM2-135M-Instruct", tmp_path) == expected
    assert resolve("smollm2-135m-INSTRUCT", tmp_path) == expected
    assert fetched == [DEFAULT_MODEL] * 3


def test_files_go_by_their_stem(tmp_path: Path) -> None:
    (tmp_path / "Some-Model.Q4_K.gguf").touch()
    (tmp_path / "blob").touch()
    assert resolve(str(tmp_path / "Some-Model.Q4_K.gguf"), tmp_path).name == "Some-Model.Q4_K"
    assert resolve(str(tmp_path / "blob"), tmp_path) == Resolved("blob", tmp_path / "blob")


def test_directories_go_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "Some-Model-1.5B"
    directory.mkdir()
    (directory / "config.json").touch()
    assert resolve(f"{directory}/", tmp_path) == Resolved("Some-Model-1.5B", directory)
    monkeypatch.chdir(directory)
    assert resolve(".", tmp_path).name == "Some-Model-1.5B"


def test_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.gguf").touch()
    assert resolve("~/mine.gguf", tmp_path) == Resolved("mine", tmp_path / "mine.gguf")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "smolm2-135m-instruct",
            r"no model .*SmolLM2-135M-Instruct.*Did you mean SmolLM2-135M-Instruct\?",
        ),
        ("{tmp}/models/lama.gguf", r"Did you mean .*llama\.gguf\?"),
        ("quite-something-else", r"such as org/name\.$"),
        ("", r"has no config\.json"),
        ("{tmp}/models", r"models: has no config\.json.*It holds llama\.gguf: give that file's path"),
        ("{tmp}/hf/model.safetensors", r"give the directory it lies in, .*hf\.$"),
        ("x" * 5000, "cannot be looked at"),
    ],
)
def test_anything_else_is_explained(model: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("models/llama.gguf", "hf/config.json", "hf/model.safetensors"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    with pytest.raises(ModelLoadError, match=message):
        resolve(model.format(tmp=tmp_path), tmp_path)


def test_an_adapter_is_found_but_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    path = resolve(str(tmp_path), tmp_path).path
    for read in (open_checkpoint, describe):
        with pytest.raises(ModelLoadError, match=r"is a LoRA adapter; .*: arriero serve org/base --lora-model "):
            read(path)
