"""Who listens on a port of this machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def listener(port: int) -> tuple[int, str] | None:
    """The process that listens on a port and its name, where the system tells (proc(5), `/proc/net/tcp`)."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{words[9]}]")
    for link in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        with suppress(OSError):  # It has ended, or it is not ours to look at.
            if os.readlink(link) in inodes:
                return int(link.parts[2]), (link.parents[1] / "comm").read_text().strip()
    return None
