from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from arriero.errors import ModelLoadError
from arriero.models import cache as caches
from arriero.models.cache import converted


def write(text: str) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        (directory / "sub").mkdir()
        (directory / "graph.onnx").write_text(text)
        (directory / "sub" / "weights.bin").write_bytes(bytes(1000))

    return build


def never(directory: Path) -> None:
    raise AssertionError("built again")


def names(cache: Path) -> set[str]:
    """What is there beside locks."""
    return {path.name for path in (cache / "converted").iterdir() if path.suffix not in (".lock", ".use")}


def test_built_once_for_each_key(tmp_path: Path) -> None:
    first = converted(tmp_path, {"weights": "int8"}, write("a"))
    assert (first / "graph.onnx").read_text() == "a"
    assert converted(tmp_path, {"weights": "int8"}, never) == first
    other = converted(tmp_path, {"weights": "fp32"}, write("b"))
    assert (other / "graph.onnx").read_text() == "b"
    assert names(tmp_path) == {first.name, other.name}


def test_another_version_builds_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = converted(tmp_path, {}, write("a"))
    monkeypatch.setattr("arriero.__version__", "999")
    second = converted(tmp_path, {}, write("a"))
    monkeypatch.setattr("arriero.models.cache.FORMAT_VERSION", 999)
    third = converted(tmp_path, {}, write("a"))
    assert len({first, second, third}) == 3


def test_a_failing_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise ModelLoadError("tensor x is missing")

    with pytest.raises(ModelLoadError, match="tensor x is missing"):
        converted(tmp_path, {}, fail)
    assert names(tmp_path) == set()
    assert (converted(tmp_path, {}, write("a")) / "graph.onnx").exists()


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        raise OSError(28, "No space left on device", str(directory / "graph.onnx"))

    with pytest.raises(ModelLoadError, match=r"graph\.onnx: cannot be written: No space left.*ARRIERO_CACHE"):
        converted(tmp_path, {}, fail)


@pytest.mark.parametrize("damage", ["cut", "remove", "forget"])
def test_a_damaged_conversion_is_built_again(damage: str, tmp_path: Path) -> None:
    path = converted(tmp_path, {}, write("a"))
    if damage == "cut":
        os.truncate(path / "sub" / "weights.bin", 10)
    elif damage == "remove":
        (path / "graph.onnx").unlink()
    else:
        (path / "conversion.json").unlink()
    assert converted(tmp_path, {}, write("again")) == path
    assert (path / "graph.onnx").read_text() == "again"
    assert names(tmp_path) == {path.name}


BUILDER = """
import sys, time
from pathlib import Path
from arriero.models import cache as caches
from arriero.models.cache import converted

cache, key, seconds, limit = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4])

def build(directory):
    with (cache / "builds").open("a") as log:
        log.write(key + "\\n")
    (directory / "half").write_bytes(bytes(1000))
    time.sleep(seconds)
    (directory / "graph.onnx").write_bytes(bytes(1000))

print(converted(cache, {"key": key}, build, limit), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A process that converts, prints where, and keeps its conversion in use until its input closes."""
    started = []

    def run(key: str, seconds: float = 0.0, limit: int = 10**9) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path), key, str(seconds), str(limit)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def where(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_several_processes_build_once(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    processes = [start("k", 0.5) for _ in range(3)]
    paths = {where(process) for process in processes}
    assert len(paths) == 1
    assert (paths.pop() / "graph.onnx").exists()
    assert (tmp_path / "builds").read_text() == "k\n"


def test_different_keys_do_not_wait_for_each_other(start: Callable[..., subprocess.Popen[str]]) -> None:
    slow = start("slow", 60)
    assert (where(start("quick")) / "graph.onnx").exists()
    assert slow.poll() is None


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_build_killed_half_way_is_swept_and_done_again(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    victim = start("k", 60)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "converted").glob("*.partial-*/fresh/half")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert len(names(tmp_path)) == 1
    path = converted(tmp_path, {"key": "k"}, write("a"))
    assert names(tmp_path) == {path.name}
    assert (path / "graph.onnx").read_text() == "a"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_leftovers_of_other_keys_are_swept_too(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    victim, builder = start("victim", 60), start("builder", 60)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "converted").glob("*.partial-*/fresh/half"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    path = converted(tmp_path, {"key": "mine"}, write("a"))
    left = names(tmp_path) - {path.name}
    assert len(left) == 1, "the victim's is gone, the live builder's is not"
    assert builder.poll() is None


def test_longest_unused_conversions_go_first(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    paths = {}
    for age, key in ((30, "a"), (20, "b"), (10, "c")):
        process = start(key)
        paths[key] = where(process)
        process.communicate()
        os.utime(paths[key], (time.time() - age, time.time() - age))
    process = start("a")  # used again
    where(process)
    process.communicate()
    mine = converted(tmp_path, {"key": "d"}, write("d"), limit=5500)  # each of the others has 2000 bytes, this 1001
    assert names(tmp_path) == {paths["a"].name, paths["c"].name, mine.name}


def test_conversions_in_use_are_not_pruned(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    used = start("used")
    used_path = where(used)
    mine = converted(tmp_path, {"key": "mine"}, write("a"), limit=0)
    assert names(tmp_path) == {used_path.name, mine.name}
    used.communicate()
    other = converted(tmp_path, {"key": "other"}, write("a"), limit=0)
    assert names(tmp_path) == {mine.name, other.name}
    assert len(list((tmp_path / "converted").glob("*.use"))) == 2


def test_marks_of_processes_that_are_gone_do_not_pile_up(tmp_path: Path) -> None:
    path = converted(tmp_path, {"key": "shared"}, write("a"))
    gone = path.with_name(f"{path.name}.999999.use")
    gone.touch()
    caches._in_use.pop(path).release()  # as in a process that has just begun
    assert converted(tmp_path, {"key": "shared"}, write("a")) == path
    assert [each.name for each in path.parent.glob("*.use")] == [f"{path.name}.{os.getpid()}.use"]
