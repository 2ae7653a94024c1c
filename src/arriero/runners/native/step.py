"""One step of a decoder, compiled: any rows, each with any number of tokens, through all layers.

All threads walk through the same phases. A phase is a number of parts; a thread takes the next part that nobody has
taken, and goes on to the next phase when all parts are done, whoever did them. So a thread that comes late, or that the
system puts aside, holds nobody up but for the part it has.

What a token's row becomes depends on that row and its predecessors alone, bit for bit: integer products are exact,
and every sum of floats runs in an order that neither the batch nor the chunk has a part in.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from arriero.runners.native.groups import group_bytes, product_of_bytes, product_of_nibbles, quantise_groups
from arriero.runners.native.machine_code import IS_KEPT
from arriero.runners.native.plan import BLOCK, COUNTER_BYTES, ENDED, GROUP, LANES, LINE, UNIT, Do, Form, Operation, Plan
from arriero.runners.native.plan import padded as plain_padded
from arriero.runners.native.vectors import (
    MOST_QUERIES,
    MOST_ROWS,
    add16,
    add_values,
    copy16,
    fetch_add,
    floats,
    int_at,
    integers,
    key_groups,
    largest,
    multiply,
    pause,
    product,
    quantise,
    scores,
    set_half,
    set_halves16,
    set_int,
    set_product16,
    set_shared,
    shared,
    softmax,
    square_sum,
    swiglu16,
    ticks,
)

TOKENS = 96
"""Tokens that a part of a product takes at most."""
NIBBLE_GROUP, BYTE_GROUP = group_bytes(4), group_bytes(8)
FEW_GROUPS, MANY_GROUPS = key_groups(3), key_groups(MOST_QUERIES)

_jit = njit(nogil=True, error_model="numpy", cache=not IS_KEPT)  # otherwise `kernel` keeps it
padded = _jit(plain_padded)


@_jit
def _take(counters, parts):
    """The next part of an operation that nobody has taken, or -1 once all are done."""
    if shared(counters) < parts:
        part = fetch_add(counters, 1)
        if part < parts:
            return part
    while shared(counters + LINE) < parts:
        pause()
    set_shared(counters + ENDED, ticks())
    return -1


@_jit
def _done(counters):
    fetch_add(counters + LINE, 1)


@_jit
def _normalise_row(row, gamma, size, epsilon, out):
    """A normalised row, all padded with zeros to whole vectors."""
    vectors = padded(size, LANES) // LANES
    factor = np.float32(1.0) / np.sqrt(square_sum(row, vectors) / np.float32(size) + epsilon)
    multiply(row, gamma, factor, out, vectors)


@_jit
def _quantise(form, row, size, even_step, out, step):
    """Round a row, padded with zeros to whole units, to bytes.

    They count in `even_step`, or in a step of the row's own where that is 0, or in steps of each group.
    """
    if form != Form.ROWS:
        quantise_groups(row, padded(size, GROUP) // GROUP, out, step)
        return
    vectors = padded(size, LANES) // LANES
    unit = even_step
    if unit == 0:
        unit = largest(row, vectors) / np.float32(127.0)
    inverse = np.float32(0.0)
    if unit > 0:
        inverse = np.float32(1.0) / unit
    quantise(row, inverse, out, vectors)
    floats(step, 1)[0] = unit


@_jit
def _share(count, most):
    """How many of `count` to take at a time, at most `most`, so that none is left to be taken alone."""
    times = (count + most - 1) // most
    return (count + times - 1) // times


@_jit
def _product_parts(tokens, units, threads):
    """How a product is cut: units a part, parts of units, parts of tokens."""
    grain = max(1, units // (4 * threads))
    return grain, (units + grain - 1) // grain, (tokens + TOKENS - 1) // TOKENS


@_jit
def _write_product(products, rows, unit, bias, out, stride, do):
    """Do with products [rows, 32] what is to be done with them."""
    place = 4 * unit * UNIT
    for row in range(rows):
        source, target = products + 4 * UNIT * row, out + 4 * row * stride + place
        if do == Do.GATE:
            swiglu16(source, source + 4 * LANES, out + 4 * (row * stride + unit * LANES))
            continue
        for half in range(0, 4 * UNIT, 4 * LANES):
            if bias != 0:
                add16(source + half, bias + place + half, source + half)
            if do == Do.ADD:
                add16(source + half, target + half, target + half)
            else:
                copy16(source + half, target + half)


@_jit
def _product(operation, rows, unit, values, value_stride, steps, steps_stride, products):
    """Products of some rows and one unit: float32 [rows, 32]."""
    form, size, weights = operation[Operation.FORM], operation[Operation.SIZE_IN], operation[Operation.WEIGHTS]
    if form == Form.NIBBLES:
        groups = padded(size, GROUP) // GROUP
        weights += unit * groups * NIBBLE_GROUP
        product_of_nibbles(rows, weights, values, value_stride, steps, steps_stride, groups, products)
    elif form == Form.BYTES:
        groups = padded(size, GROUP) // GROUP
        weights += unit * groups * BYTE_GROUP
        product_of_bytes(rows, weights, values, value_stride, steps, steps_stride, groups, products)
    else:
        quads = padded(size, 4) // 4
        product(rows, weights + unit * quads * 4 * UNIT, values, value_stride, quads, products)
        corrections = operation[Operation.SUMS] + 4 * unit * UNIT
        scales = operation[Operation.SCALES] + 4 * unit * UNIT
        for row in range(rows):
            step = floats(steps + steps_stride * row, 1)[0]
            for half in range(0, 4 * UNIT, 4 * LANES):
                place = products + 4 * UNIT * row + half
                set_product16(place, corrections + half, scales + half, step, place)


@_jit
def _product_part(plan, operation, part, unit_parts, grain, tokens, scratch):
    """A part of a product."""
    first_unit = part % unit_parts * grain
    first = part // unit_parts * TOKENS
    last = min(tokens, first + TOKENS)
    out, stride = plan[operation[Operation.OUT]], operation[Operation.OUT_STRIDE]
    value_stride, steps_stride = plan[Plan.WIDTH], plan[Plan.STEPS_WIDTH]
    for unit in range(first_unit, min(operation[Operation.UNITS], first_unit + grain)):
        token = first
        while token < last:
            rows = _share(last - token, MOST_ROWS)
            values, steps = plan[Plan.BYTES] + token * value_stride, plan[Plan.STEPS] + token * steps_stride
            _product(operation, rows, unit, values, value_stride, steps, steps_stride, scratch)
            bias = operation[Operation.BIAS]
            _write_product(scratch, rows, unit, bias, out + 4 * token * stride, stride, operation[Operation.DO])
            token += rows


@_jit
def _turn(head, size, rotary, cosines, sines):
    """Turn a head by its position."""
    half = rotary // 2
    values = floats(head, size)
    cosine, sine = floats(cosines, half), floats(sines, half)
    for index in range(half):
        low, high = values[index], values[index + half]
        values[index] = low * cosine[index] - high * sine[index]
        values[index + half] = high * cosine[index] + low * sine[index]


@_jit
def _place_token(plan, operation, token, epsilon, attention_scale):
    """Make a token's queries ready, and put its keys and values into the cache."""
    heads, kv_heads, size = plan[Plan.HEADS], plan[Plan.KV_HEADS], plan[Plan.HEAD_SIZE]
    rotary = plan[Plan.ROTARY_SIZE]
    position = int_at(plan[Plan.POSITIONS] + 8 * token)
    row = plan[Plan.QKV] + 4 * token * padded((heads + 2 * kv_heads) * size, UNIT)
    cosines, sines = (plan[Plan.COSINES] + 2 * rotary * position), (plan[Plan.SINES] + 2 * rotary * position)
    for head in range(heads + kv_heads):
        address = row + 4 * head * size
        gamma = operation[Operation.QUERY_NORM] if head < heads else operation[Operation.KEY_NORM]
        if gamma != 0:
            _normalise_row(address, gamma, size, epsilon, address)
        if operation[Operation.TURNED] != 0:
            _turn(address, size, rotary, cosines, sines)
        if head < heads:
            query = floats(address, size)
            for index in range(size):
                query[index] *= attention_scale
    cache = (
        int_at(plan[Plan.CACHES] + 8 * token)
        + position // BLOCK * plan[Plan.BLOCK_BYTES]
        + operation[Operation.LAYER] * plan[Plan.LAYER_BYTES]
    )
    inside = position % BLOCK
    for head in range(kv_heads):
        keys = cache + head * 4 * BLOCK * size
        key = floats(row + 4 * (heads + head) * size, size)
        column = keys + 2 * (inside // LANES * size * LANES + inside % LANES)
        for index in range(size):
            set_half(column + 2 * LANES * index, key[index])
        value = row + 4 * (heads + kv_heads + head) * size
        for index in range(0, size, LANES):
            set_halves16(value + 4 * index, keys + 2 * (BLOCK * size + inside * size + index))


@_jit
def _fill(address, count, value):
    array = floats(address, count)
    for index in range(count):
        array[index] = value


@_jit
def _attend_part(plan, operation, first, count, kv_head, scratch):
    """Attention of neighbouring tokens of one row, for the queries that share a head of keys and values."""
    heads, kv_heads, size = plan[Plan.HEADS], plan[Plan.KV_HEADS], plan[Plan.HEAD_SIZE]
    group, window = heads // kv_heads, operation[Operation.WINDOW]
    qkv_width, width = padded((heads + 2 * kv_heads) * size, UNIT), padded(heads * size, UNIT)
    keys = (
        int_at(plan[Plan.CACHES] + 8 * first)
        + operation[Operation.LAYER] * plan[Plan.LAYER_BYTES]
        + kv_head * 4 * BLOCK * size
    )
    position = int_at(plan[Plan.POSITIONS] + 8 * first)
    stride = 4 * plan[Plan.SCORES]
    addresses, sums = scratch, scratch + 64
    weights_at = sums + 4 * MOST_QUERIES * size
    total = count * group
    query = 0
    while query < total:
        queries = _share(total - query, MOST_QUERIES)
        for index in range(queries):
            token, head = first + (query + index) // group, kv_head * group + (query + index) % group
            set_int(addresses + 8 * index, plan[Plan.QKV] + 4 * (token * qkv_width + head * size))
        lowest = 0
        if window > 0:
            lowest = max(0, position + query // group + 1 - window) // LANES
        end = position + (query + queries - 1) // group + 1
        together = LANES * (FEW_GROUPS if queries <= 3 else MANY_GROUPS)
        for key in range(lowest * LANES // together * together, end, together):
            place = keys + key // BLOCK * plan[Plan.BLOCK_BYTES] + key % BLOCK * size * 2
            scores(queries, addresses, place, size, weights_at + 4 * key, stride)
        for index in range(queries):
            own_end = position + (query + index) // group + 1
            own_start = 0
            if window > 0:
                own_start = max(0, own_end - window)
            low, high = own_start // LANES * LANES, padded(own_end, LANES)
            row = weights_at + stride * index
            _fill(row + 4 * low, own_start - low, -np.inf)
            _fill(row + 4 * own_end, high - own_end, -np.inf)
            softmax(row + 4 * low, (high - low) // LANES)
            _fill(row + 4 * lowest * LANES, low - lowest * LANES, 0.0)
            _fill(row + 4 * high, end - high, 0.0)
        results = floats(sums, queries * size)
        _fill(sums, queries * size, 0.0)
        key = lowest * LANES
        while key < end:
            some = min(BLOCK - key % BLOCK, end - key)
            place = keys + key // BLOCK * plan[Plan.BLOCK_BYTES] + 2 * (BLOCK + key % BLOCK) * size
            add_values(queries, weights_at + 4 * key, stride, place, size, some, sums)
            key += some
        for index in range(queries):
            token, head = first + (query + index) // group, kv_head * group + (query + index) % group
            target = floats(plan[Plan.ATTENDED] + 4 * (token * width + head * size), size)
            for element in range(size):
                target[element] = results[index * size + element]
        query += queries


@_jit
def _normalise(counters, plan, operation, epsilon, even_step, scratch):
    source, chosen = plan[operation[Operation.SOURCE]], operation[Operation.CHOSEN]
    size, stride = operation[Operation.SIZE_IN], operation[Operation.SOURCE_STRIDE]
    while True:
        row = _take(counters, plan[operation[Operation.ROWS]])
        if row < 0:
            return
        origin = row
        if chosen != 0:
            origin = int_at(plan[chosen] + 8 * row)
        _normalise_row(source + 4 * origin * stride, operation[Operation.WEIGHTS], size, epsilon, scratch)
        _fill(scratch + 4 * size, padded(size, UNIT) - size, 0.0)
        place, step = plan[Plan.BYTES] + row * plan[Plan.WIDTH], plan[Plan.STEPS] + row * plan[Plan.STEPS_WIDTH]
        _quantise(operation[Operation.FORM], scratch, size, even_step, place, step)
        _done(counters)


@_jit
def _round(counters, plan, operation):
    source, stride = plan[operation[Operation.SOURCE]], operation[Operation.SOURCE_STRIDE]
    while True:
        row = _take(counters, plan[operation[Operation.ROWS]])
        if row < 0:
            return
        place, step = plan[Plan.BYTES] + row * plan[Plan.WIDTH], plan[Plan.STEPS] + row * plan[Plan.STEPS_WIDTH]
        values = source + 4 * row * stride
        _quantise(operation[Operation.FORM], values, operation[Operation.SIZE_IN], np.float32(0.0), place, step)
        _done(counters)


@_jit
def _multiply(counters, plan, operation, scratch):
    rows, units = plan[operation[Operation.ROWS]], operation[Operation.UNITS]
    grain, unit_parts, row_parts = _product_parts(rows, units, plan[Plan.THREADS])
    while True:
        part = _take(counters, unit_parts * row_parts)
        if part < 0:
            return
        _product_part(plan, operation, part, unit_parts, grain, rows, scratch)
        _done(counters)


@_jit
def _place(counters, plan, operation, epsilon, attention_scale):
    while True:
        token = _take(counters, plan[Plan.TOKENS])
        if token < 0:
            return
        _place_token(plan, operation, token, epsilon, attention_scale)
        _done(counters)


@_jit
def _attend(counters, plan, operation, scratch):
    kv_heads = plan[Plan.KV_HEADS]
    while True:
        part = _take(counters, plan[Plan.PARTS] * kv_heads)
        if part < 0:
            return
        which = part // kv_heads
        first, count = int_at(plan[Plan.PART_FIRST] + 8 * which), int_at(plan[Plan.PART_COUNT] + 8 * which)
        _attend_part(plan, operation, first, count, part % kv_heads, scratch)
        _done(counters)


@_jit
def run(thread, plan_at, program_at, reals_at):
    """Walk through a program as one of several threads.

    They lie at addresses, as everything that they name:
    plan_at     int64 [Plan.SIZE]
    program_at  int64 [operations, Operation.SIZE]
    reals_at    float32 [3]: the norms' epsilon, the step of normalised rows or 0, attention's scale
    """
    plan, reals = integers(plan_at, Plan.SIZE), floats(reals_at, 3)
    epsilon, even_step, attention_scale = reals[0], reals[1], reals[2]
    scratch = plan[Plan.SCRATCH] + thread * plan[Plan.SCRATCH_SIZE]
    for index in range(plan[Plan.OPERATIONS]):
        operation = integers(program_at + 8 * Operation.SIZE * index, Operation.SIZE)
        counters = plan[Plan.COUNTERS] + COUNTER_BYTES * index
        do = operation[Operation.DO]
        if do == Do.NORMALISE:
            _normalise(counters, plan, operation, epsilon, even_step, scratch)
        elif do == Do.ROUND:
            _round(counters, plan, operation)
        elif do == Do.PLACE:
            _place(counters, plan, operation, epsilon, attention_scale)
        elif do == Do.ATTEND:
            _attend(counters, plan, operation, scratch)
        else:
            _multiply(counters, plan, operation, scratch)
