"""Which form the fidelity tests have: the short one, or with PROOF=1 in the environment the long one, of minutes."""

import os

PROOF = bool(os.environ.get("PROOF"))
