"""The short form of `benchmarks/soak.py`: clients of every kind, and nothing of them stays behind."""

import importlib.util
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_nothing_stays_behind_in_a_server_after_clients_of_every_kind():
    spec = importlib.util.spec_from_file_location("soak", FILE)
    soak = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = soak
    spec.loader.exec_module(soak)
    report = soak.on_scripted(50, 5.0)
    assert report.faults == []
    assert report.outcomes["ask"]["200"]
    assert report.outcomes["stream"]["200"]
    assert sum(len(counts) > 0 for counts in report.outcomes.values()) > 6
