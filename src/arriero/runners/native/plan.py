"""What a step is told: sizes and places, and the program of operations that it walks through.

Both are arrays of int64, which compiled code reads without help; these are the names of their columns.
"""

from enum import IntEnum

BLOCK = 64
"""Tokens whose keys and values lie together."""
LANES = 16
"""Floats of a vector."""
UNIT = 32
"""Outputs that a product computes at a time."""
GROUP = 32
"""Inputs that have scales together, where not each row and each output has one."""
SCRATCH_ROWS = 12
"""Rows of a product that a thread has room for: as many as there are registers for their sums at best."""
SCRATCH_QUERIES = 6
"""Queries of attention that it has room for, likewise."""
LINE = 64
"""Bytes of a cache line."""
COUNTER_BYTES = 2 * LINE
"""Of each operation: parts taken, and when it ended, and in a cache line of their own parts done."""
ENDED = 8
"""Where among them the processor's clock stands as it was when the last thread left the operation."""


def padded(size: int, multiple: int) -> int:
    """A size made a multiple of another."""
    return (size + multiple - 1) // multiple * multiple


class Plan(IntEnum):
    """Places in the array that describes a step: sizes, and addresses of what it reads and writes."""

    TOKENS = 0
    WANTED = 1
    PARTS = 2
    """Parts of attention, each some neighbouring tokens of a row."""
    OPERATIONS = 3
    THREADS = 4
    HEADS = 5
    KV_HEADS = 6
    HEAD_SIZE = 7
    ROTARY_SIZE = 8
    WIDTH = 9
    """Bytes between rows of `BYTES`."""
    SCRATCH_SIZE = 10
    """Bytes that each thread has for itself."""
    SCORES = 11
    """Scores that a query has room for."""
    BLOCK_BYTES = 12
    LAYER_BYTES = 13
    COUNTERS = 14
    """int64: `COUNTER_BYTES` an operation."""
    SCRATCH = 15
    HIDDEN = 16
    """float32 [tokens, hidden]: the residual stream."""
    BYTES = 17
    """uint8 [tokens, width]: rows as products read them."""
    STEPS = 18
    """float32: what those count in, a number each row or two each group; see `groups`."""
    QKV = 19
    """float32 [tokens, qkv]: queries, keys and values."""
    ATTENDED = 20
    """float32 [tokens, heads * head]"""
    INNER = 21
    """float32 [tokens, inner]"""
    LOGITS = 22
    """float32 [wanted, vocabulary]"""
    POSITIONS = 23
    """int64 [tokens]"""
    CACHES = 24
    """int64 [tokens]: where the keys and values of each token's row begin."""
    PART_FIRST = 25
    """int64 [parts]: the first token of each part of attention."""
    PART_COUNT = 26
    WANTED_TOKENS = 27
    """int64 [wanted]"""
    COSINES = 28
    SINES = 29
    STEPS_WIDTH = 30
    """Bytes between rows of `STEPS`."""
    SIZE = 31


class Form(IntEnum):
    """How weights are written, and the rows that they multiply."""

    ROWS = 0
    """int8, with one scale an output and one a row."""
    NIBBLES = 1
    """4 bits, with scales for each group of inputs."""
    BYTES = 2
    """8 bits, likewise."""


class Do(IntEnum):
    """What an operation does."""

    NORMALISE = 0
    """Rows of SOURCE, or those of them that CHOSEN counts up, normalised and rounded to bytes."""
    ROUND = 1
    """Rows of SOURCE rounded to bytes, each in steps of its own."""
    MULTIPLY = 2
    """A linear layer of the rows of bytes: OUT becomes the product."""
    ADD = 3
    """The same, but OUT grows by the product."""
    GATE = 4
    """The same, but of each unit's 32 outputs the first half gates the second."""
    PLACE = 5
    """Queries are made ready, keys and values go to the cache."""
    ATTEND = 6


class Operation(IntEnum):
    """Columns of a program, whose rows are operations in their order. Arrays and counts are places in the plan, weights
    addresses; 0 stands for what there is not."""

    DO = 0
    ROWS = 1
    """What counts the rows."""
    SOURCE = 2
    CHOSEN = 3
    OUT = 4
    SOURCE_STRIDE = 5
    """Elements between rows."""
    OUT_STRIDE = 6
    SIZE_IN = 7
    UNITS = 8
    WEIGHTS = 9
    """Of a linear layer or a norm."""
    SCALES = 10
    SUMS = 11
    BIAS = 12
    LAYER = 13
    WINDOW = 14
    """Tokens that a token attends to; 0: all."""
    TURNED = 15
    """1 where positions turn queries and keys."""
    QUERY_NORM = 16
    KEY_NORM = 17
    FORM = 18
    """Of weights, or of the rows that they are to multiply: `Form`."""
    SIZE = 19
