"""Which form the fidelity tests have: the short one, or with PROOF=1 in the environment the long one, of minutes."""

import os

PROOF = bool(os.environ.get("PROOF"))

NATIVE = ("native int8", "native int4")
EXACT = ("int8", *NATIVE)
"""Kinds of runners, by their weights, that promise the same bits in any company; the others promise the same tokens."""
