"""Which model answers to a name, and whether it is in memory."""

from arriero.pool.entry import Entry, EntryState
from arriero.pool.pool import Pool
from arriero.pool.served import ServedModel, Vectors

__all__ = ["Entry", "EntryState", "Pool", "ServedModel", "Vectors"]
