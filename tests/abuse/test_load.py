"""The short form of `benchmarks/soak.py`: clients of every kind, and nothing of them stays behind."""

from collections.abc import Callable
from pathlib import Path

from soak import KEPT, soak
from tiny_directory import write_directory

TWO = """
cache = "{directory}/cache"

[[models]]
name = "scripted"
engine = "scripted"
pace = 200
preload = true

[[models]]
name = "tiny"
engine = "onnx"
model = "{directory}/Tiny"
preload = true
"""


def test_nothing_stays_behind_after_clients_of_every_kind(tmp_path: Path, figures: Callable[[str], None]) -> None:
    """On a model in the server's process and one in a child, with a key for each kind of client.

    A second before the first look is not enough for ONNX Runtime to have met all sizes of batches, nor is there time
    for a rest before the last; so memory may grow by twice of what it may in the long form.
    """
    write_directory(tmp_path / "Tiny")
    config = tmp_path / "arriero.toml"
    config.write_text(TWO.format(directory=tmp_path))
    report = soak(["--config", str(config)], clients=50, seconds=4.0, kept=2 * KEPT)
    for line in report.lines:
        figures(line)
    assert report.faults == []
    assert report.outcomes["ask"]["200"]
    assert report.outcomes["stream"]["200"]
    assert sum(len(counts) > 0 for counts in report.outcomes.values()) > 8
