import os
from pathlib import Path

import pytest

from arriero import machine


@pytest.fixture
def eight_threads(monkeypatch, tmp_path):
    """A machine of four cores with two hyper-threads each."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for number in range(8):
        write(
            tmp_path / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list",
            f"{number % 4},{number % 4 + 4}",
        )
    write(tmp_path / "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def test_what_a_processor_can_do_is_known(tmp_path):
    core = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx512_vnni\nbugs\t\t: spectre_v1"
    write(tmp_path / "proc/cpuinfo", f"processor\t: 0\n{core}\n\nprocessor\t: 1\n{core}")
    known = machine.processor(tmp_path)
    assert {"fpu", "avx512_vnni"} < known
    write(tmp_path / "proc/cpuinfo", core.replace("EPYC", "Ryzen"))
    assert machine.processor(tmp_path) != known


def test_a_system_that_does_not_tell_of_its_processor(tmp_path):
    assert machine.processor(tmp_path) == frozenset()


def test_hyper_threads_of_a_core_count_once(eight_threads):
    assert machine.physical_cores(eight_threads) == 4


def test_affinity_narrows_the_cores(eight_threads, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 1})
    assert machine.physical_cores(eight_threads) == 2


@pytest.mark.parametrize(("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)])
def test_a_quota_above_the_own_cgroup_counts(eight_threads, quota, cores):
    write(eight_threads / "proc/self/cgroup", "0::/pod/container")
    write(eight_threads / "sys/fs/cgroup/pod/container/cpu.max", "max 100000")
    write(eight_threads / "sys/fs/cgroup/pod/cpu.max", quota)
    assert machine.physical_cores(eight_threads) == cores


def test_version_1_cgroups_are_understood(eight_threads):
    write(eight_threads / "proc/self/cgroup", "5:cpu,cpuacct:/a/b\n4:memory:/a/b\n0::/")
    write(eight_threads / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000")
    write(eight_threads / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    write(eight_threads / "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1000000")
    assert machine.physical_cores(eight_threads) == 3
    assert machine.available_memory(eight_threads) == 1_000_000


def test_no_cgroup_leaves_the_free_memory(eight_threads):
    assert machine.available_memory(eight_threads) == 4000 * 1024


def test_a_system_without_proc_still_has_an_answer(tmp_path):
    assert machine.physical_cores(tmp_path) >= 1
    assert machine.available_memory(tmp_path) > 0
