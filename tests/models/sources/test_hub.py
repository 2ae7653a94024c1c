"""The real library against a hub on this machine."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from arriero.errors import ModelLoadError
from arriero.models.sources.resolve import Resolved, resolve
from hub_server import OTHER_TOKEN, TOKEN, Hub

FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "README.md": b"# read me",
    "model.safetensors": bytes(range(256)) * 400,
    "pytorch_model.bin": b"the same again",
}
NEEDED = {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture
def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def contents(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_only_what_is_needed_is_fetched_and_only_once(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/tiny", FILES)
    resolved = resolve("org/tiny", tmp_path)
    assert resolved.name == "org/tiny"
    assert tmp_path / "hub" in resolved.path.parents
    assert contents(resolved.path) == {name: FILES[name] for name in NEEDED}
    assert hub.fetched() == NEEDED
    hub.requests.clear()
    assert resolve("org/tiny", tmp_path) == resolved
    assert hub.requests == ["GET /api/models/org/tiny"]


def test_a_revision_may_be_named(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/tiny", FILES)
    hub.add("org/tiny", {**FILES, "config.json": b'{"old": true}'}, "v1")
    assert contents(resolve("org/tiny@v1", tmp_path).path)["config.json"] == b'{"old": true}'
    commit = hub.repositories["org/tiny"].commit("main")
    resolved = resolve(f"org/tiny@{commit}", tmp_path)
    assert resolved.name == "org/tiny"
    assert contents(resolved.path)["config.json"] == FILES["config.json"]


def test_a_new_commit_is_noticed_and_brings_only_what_changed(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/tiny", FILES)
    old = resolve("org/tiny", tmp_path)
    hub.add("org/tiny", {**FILES, "config.json": b'{"new": true}'})
    hub.requests.clear()
    new = resolve("org/tiny", tmp_path)
    assert new.path != old.path
    assert contents(new.path)["config.json"] == b'{"new": true}'
    assert hub.fetched() == {"config.json"}


def test_shards_are_those_that_the_index_names(hub: Hub, tmp_path: Path) -> None:
    shards = {f"model-0000{i}-of-00002.safetensors": b"x" * i for i in (1, 2)}
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    files = {"config.json": b"{}", "model.safetensors.index.json": index, **shards}
    hub.add("org/tiny", {**files, "model-00001-of-00009.safetensors": b"from an older upload"})
    assert contents(resolve("org/tiny", tmp_path).path) == files


def test_an_index_that_names_a_missing_file_is_explained(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/tiny", {"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "../x"}}'})
    with pytest.raises(ModelLoadError, match=r"index\.json: names \.\./x, which is not in the repository"):
        resolve("org/tiny", tmp_path)


def test_one_gguf_file(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/tiny-GGUF", {"README.md": b"", "tiny-Q4_0.gguf": b"four", "tiny-Q8_0.gguf": b"eight"})
    resolved = resolve("org/tiny-GGUF:Q8_0", tmp_path)
    assert resolved.name == "tiny-Q8_0"
    assert resolved.path.read_bytes() == b"eight"
    assert hub.fetched() == {"tiny-Q8_0.gguf"}
    with pytest.raises(ModelLoadError, match=":Q4_0, :Q8_0"):
        resolve("org/tiny-GGUF", tmp_path)


def test_progress_grows_to_the_whole(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/tiny", FILES)
    seen: list[tuple[int, int | None]] = []
    resolve("org/tiny", tmp_path, lambda done, total: seen.append((done, total)))
    size = sum(len(FILES[name]) for name in NEEDED)
    done = [bytes_done for bytes_done, _ in seen]
    assert {total for _, total in seen} == {size}
    assert done == sorted(done)
    assert done[-1] == size


def test_a_broken_connection_is_taken_up_where_it_broke(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # what has not filled a chunk is lost
    hub.add("org/tiny", FILES)
    hub.cuts["model.safetensors"] = 1000
    seen: list[int] = []
    resolved = resolve("org/tiny", tmp_path, lambda done, total: seen.append(done))
    assert contents(resolved.path)["model.safetensors"] == FILES["model.safetensors"]
    assert [request.split()[-1] for request in hub.requests if "bytes=" in request] == ["bytes=1000-"]
    assert seen[-1] == sum(len(FILES[name]) for name in NEEDED)


def test_an_interrupted_download_keeps_the_files_that_are_whole(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/tiny", FILES)
    half = {**FILES, "model.safetensors": b"x" * 200_000}
    hub.add("org/tiny", half)
    done_before = sum(len(half[name]) for name in NEEDED) - 200_000

    def interrupt(done: int, total: int | None) -> None:
        if done > done_before:
            raise ConnectionAbortedError("gone")

    with pytest.raises(ModelLoadError, match=r"org/tiny cannot be fetched.*gone"):
        resolve("org/tiny", tmp_path, interrupt)
    assert not list((tmp_path / "hub").rglob("*.incomplete"))
    hub.requests.clear()
    assert contents(resolve("org/tiny", tmp_path).path) == {name: half[name] for name in NEEDED}
    assert "model.safetensors" in hub.fetched()


def test_private_repositories_open_with_a_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/secret", FILES, private=True)
    with pytest.raises(ModelLoadError, match=r"There is no org/secret at .*, nor a file .* HF_TOKEN"):
        resolve("org/secret", tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve("org/secret", tmp_path).name == "org/secret"


def test_gated_repositories_say_how_to_get_in(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/gated", FILES, gated=True)
    with pytest.raises(ModelLoadError, match=r"is gated: ask for access at .*/org/gated; then log in with `hf auth"):
        resolve("org/gated", tmp_path)
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    with pytest.raises(ModelLoadError, match=r"is gated: .*; then the token in use has no access"):
        resolve("org/gated", tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert resolve("org/gated", tmp_path).path.is_dir()


def test_what_is_not_there_is_explained(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", FILES)
    with pytest.raises(ModelLoadError, match=r"org/tiny has no revision 'v9'"):
        resolve("org/tiny@v9", tmp_path)
    with pytest.raises(ModelLoadError, match=r"'org/a--b' cannot be the name of a repository"):
        resolve("org/a--b", tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ModelLoadError, match=rf"There is no org/none at {hub.url}, nor a file or directory .* here\.$"):
        resolve("org/none", tmp_path)


def test_offline_takes_what_is_cached(hub: Hub, offline: Callable[[], None], tmp_path: Path) -> None:
    hub.add("org/tiny", FILES)
    hub.add("org/other", FILES)
    resolved = resolve("org/tiny", tmp_path)
    hub.requests.clear()
    offline()
    assert resolve("org/tiny", tmp_path) == resolved
    with pytest.raises(ModelLoadError, match=r"org/other is not whole in .*, and HF_HUB_OFFLINE forbids"):
        resolve("org/other", tmp_path)
    assert hub.requests == []


def test_offline_takes_what_an_older_library_cached(hub: Hub, offline: Callable[[], None], tmp_path: Path) -> None:
    hub.add("org/tiny", FILES)
    resolved = resolve("org/tiny", tmp_path)
    moved = (tmp_path / "hub").rename(tmp_path / "old")
    for listing in moved.rglob("trees/*.json"):
        listing.unlink()
    constants.HF_HUB_CACHE = str(moved)  # the library keeps listings in memory by their path
    offline()
    assert contents(resolve("org/tiny", tmp_path).path) == {name: FILES[name] for name in NEEDED}
    assert resolved.name == "org/tiny"


def test_a_hub_out_of_reach_is_as_good_as_offline(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", FILES)
    resolved = resolve("org/tiny", tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert resolve("org/tiny", tmp_path) == resolved
    with pytest.raises(ModelLoadError, match=r"org/other cannot be fetched from http://127.0.0.1:1: .*refused.*Check"):
        resolve("org/other", tmp_path)


def test_a_hub_that_is_ill_is_explained(hub: Hub, tmp_path: Path) -> None:
    hub.status = 500
    with pytest.raises(ModelLoadError, match=r"org/tiny cannot be fetched from .*: the answer was 500 Internal Server"):
        resolve("org/tiny", tmp_path)


def test_a_full_disk_is_explained(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", FILES)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ModelLoadError, match=r"cannot be written: No space left on device.*HF_HUB_CACHE"):
        resolve("org/tiny", tmp_path)


def test_a_path_that_exists_is_no_hub_id(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/tiny", FILES)
    monkeypatch.chdir(tmp_path)
    directory = Path("org/tiny")
    directory.mkdir(parents=True)
    (directory / "config.json").touch()
    assert resolve("org/tiny", tmp_path) == Resolved("tiny", directory)
    assert hub.requests == []


def test_an_adapter_is_found_the_same_way(hub: Hub, tmp_path: Path) -> None:
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights", "tokenizer.model": b"pieces"}
    hub.add("org/adapter", {**files, "README.md": b""})
    resolved = resolve("org/adapter", tmp_path)
    assert contents(resolved.path) == files
    assert resolve(str(resolved.path), tmp_path).path == resolved.path
