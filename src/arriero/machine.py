"""What this process may use of the machine: cores and memory, as its affinity and its cgroups allow.

Sources: proc(5), cgroups(7), and the kernel's `Documentation/admin-guide/cgroup-v1` and `cgroup-v2.rst`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def physical_cores(root: Path = _ROOT) -> int:
    """Physical cores that this process may use, at least one; hyper-threads of one core count once.

    More threads than this make matrix products slower, not faster. `root` stands in for `/` in tests.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    topology = root / "sys/devices/system/cpu"
    cores = {_read(topology / f"cpu{number}/topology/thread_siblings_list") or str(number) for number in processors}
    return max(1, min([len(cores), *map(int, _processor_quotas(root))]))


def available_memory(root: Path = _ROOT) -> int:
    """Bytes that this process could still take without swapping: what is free, or less if a cgroup says so."""
    lines = _read(root / "proc/meminfo").splitlines()
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    if not free:
        free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    return min([*free, *_memory_limits(root)])


def processor(root: Path = _ROOT) -> frozenset[str]:
    """What the processor can do, in Linux's words for it, and its name; nothing where the system does not tell."""
    first, _, _ = _read(root / "proc/cpuinfo").partition("\n\n")
    facts = dict(line.replace("\t", "").split(": ", 1) for line in first.splitlines() if ": " in line)
    if "flags" not in facts:
        return frozenset()
    name = " ".join(facts.get(key, "") for key in ("vendor_id", "cpu family", "model", "model name", "stepping"))
    return frozenset([name, *facts["flags"].split()])


def proportional_memory(process: int, root: Path = _ROOT) -> int | None:
    """Bytes of main memory that a process takes, what it shares with others divided among them (PSS).

    None where the system does not tell, or the process is gone.
    """
    for line in _read(root / f"proc/{process}/smaps_rollup").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def _processor_quotas(root: Path) -> Iterator[float]:
    for directory in _cgroups(root, "cpu"):
        quota, _, period = _read(directory / "cpu.max").partition(" ")
        quota = quota or _read(directory / "cpu.cfs_quota_us")
        period = period or _read(directory / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    for directory in _cgroups(root, "memory"):
        limit = _read(directory / "memory.max") or _read(directory / "memory.limit_in_bytes")
        if limit.isdigit():
            yield int(limit)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """Directories of this process's cgroup and all above it, for version 2 or the version 1 controller."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / (controller if controllers else "")
            below = Path(path.lstrip("/"))
            yield from (mount / each for each in (below, *below.parents))


def _read(path: Path) -> str:
    """A small file's text, empty when it is not there (another system, another cgroup version)."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
