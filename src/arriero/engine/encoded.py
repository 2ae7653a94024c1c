"""What an engine gives for an encoding request. It stands alone because a server imports it, and no NumPy for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoding request is complete: its vectors, float32 [inputs, width]."""

    vectors: NDArray[np.float32]
