"""The few small functions that emitted code may carry with it: plain torch, each a dozen lines."""

from __future__ import annotations

LIFT = """def lift(x):  # one number per sample, in a shape that multiplies states
    return x.view(-1, *[1] * ({like}.ndim - 1))
"""

SNAP = '''def snap(x, tolerance):
    """0 below the tolerance, 1 within the tolerance of 1, else x."""
    return 0.0 if x < tolerance else 1.0 if x > 1 - tolerance else x
'''

SNAP_ROWS = '''def snap_rows(x, tolerance):
    """0 below the tolerance, 1 within the tolerance of 1, else x."""
    inside = torch.where(x > 1 - tolerance, torch.ones_like(x), x)
    return torch.where(x < tolerance, torch.zeros_like(x), inside)
'''

BATCH_MEAN = '''def batch_mean(x):
    """Mean over the batch, and over all processes that train together; no gradient."""
    mean = x.detach().mean()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean = mean / torch.distributed.get_world_size()
    return mean
'''

JVP = '''def jvp(network, point, direction, /, **conditions):
    """A network at a point, and its derivative along a direction (None: that argument stays)."""
    moving = [i for i, d in enumerate(direction) if d is not None]
    # cloned: torch.compile wants values and tangents to be laid out alike
    values = [point[i].clone(memory_format=torch.contiguous_format) for i in moving]
    tangents = [(torch.zeros_like(v) + direction[i]).to(v) for i, v in zip(moving, values)]

    def along(*moved):
        full = list(point)
        for i, x in zip(moving, moved):
            full[i] = x
        return network(*full, **conditions)

    return torch.func.jvp(along, tuple(values), tuple(tangents))
'''

#: The same, unless the network has a cheaper way of its own.
RULED_JVP = JVP.replace(
    "    moving =",
    """    if hasattr(network, "jvp"):  # it has a cheaper way of its own
        return network.jvp(point, direction, **conditions)
    moving =""",
)

SHARED_JVP = '''def shared_jvp(network, point, direction, /, **conditions):
    """The same, but the derivative carries no gradient: it is no part of what is differentiated."""
    if hasattr(network, "shared_jvp"):  # it has a way to get both from one pass
        return network.shared_jvp(point, direction, **conditions)
    value = network(*point, **conditions)
    with torch.no_grad():
        return value, jvp(network, point, direction, **conditions)[1]
'''

ONLY = '''def only(network, value, derivative=()):
    """The network, asked for some of its heads; it may return None for the values and derivatives
    of others, if it knows how to leave them out.
    """
    return network.only(value, derivative) if hasattr(network, "only") else network
'''

#: The difference quotient of a network with one output, and with several.
ONE = "(after - before) / (2 * STEP)"
SEVERAL = "tuple((a - b) / (2 * STEP) for a, b in zip(after, before))"

DIFFERENCE = '''def difference(network, point, direction, /, **conditions):
    """The derivative of a network along a direction (None: that argument stays), by differences.

    The error grows with the square of STEP, and with the precision of the arithmetic over STEP.
    """
    ahead = [x if d is None else x + STEP * d for x, d in zip(point, direction)]
    behind = [x if d is None else x - STEP * d for x, d in zip(point, direction)]
    after, before = network(*ahead, **conditions), network(*behind, **conditions)
    return CHANGE
'''

IN_CHUNKS = '''def in_chunks(function, network, point, direction, /, **conditions):
    """The derivative of a network, of a few rows at a time, so that it takes less memory."""

    def take(x, rows):
        if isinstance(x, tuple):
            return tuple(take(y, rows) for y in x)
        return x[rows] if torch.is_tensor(x) and x.ndim else x

    def join(parts):
        if isinstance(parts[0], tuple):
            return tuple(join(part) for part in zip(*parts))
        return None if parts[0] is None else torch.cat(parts)

    starts = range(0, max(1, len(point[0])), CHUNK)
    chunks = [slice(start, start + CHUNK) for start in starts]
    return join(
        [
            function(
                network,
                take(point, rows),
                take(direction, rows),
                **{name: take(x, rows) for name, x in conditions.items()},
            )
            for rows in chunks
        ]
    )
'''

ON_ROWS = '''def on_rows(rows, batch, function, *arguments, **conditions):
    """A function on some rows of the batch; zero elsewhere."""
    # without any rows it runs on one, to learn the shape of its results
    some = rows if len(rows) else rows.new_zeros(1)

    def take(x):
        if isinstance(x, tuple):
            return tuple(take(y) for y in x)
        return x[some] if torch.is_tensor(x) else x

    def spread(x):
        if isinstance(x, tuple):
            return tuple(spread(y) for y in x)
        return x.new_zeros(batch, *x.shape[1:]).index_copy(0, rows, x[: len(rows)])

    return spread(function(*take(arguments), **{name: take(x) for name, x in conditions.items()}))
'''

#: The same for heads that may be left out.
ON_ROWS_OF_HEADS = ON_ROWS.replace(
    """            return tuple(spread(y) for y in x)
        return x.new_zeros""",
    """            return tuple(spread(y) for y in x)
        if x is None:
            return None
        return x.new_zeros""",
)

IN_ONE_CALL = '''def in_one_call(network, batch, *calls):
    """Several calls of a network as one: each is (rows, or None for all; arguments; conditions)."""
    # a call without any rows runs on one, as it would by itself
    chosen = [r if r is None or len(r) else r.new_zeros(1) for r, _, _ in calls]

    def join(parts):
        return torch.cat([x if rows is None else x[rows] for x, rows in zip(parts, chosen)])

    point = [join(parts) for parts in zip(*(arguments for _, arguments, _ in calls))]
    conditions = {name: join([given[name] for _, _, given in calls]) for name in calls[0][2]}
    result = network(*point, **conditions)
    sizes = [batch if rows is None else len(rows) for rows in chosen]

    def split(x):
        if isinstance(x, tuple):
            return list(zip(*(split(y) for y in x)))
        if x is None:
            return [None] * len(calls)
        return [spread(rows, own) for (rows, _, _), own in zip(calls, x.split(sizes))]

    def spread(rows, own):
        if rows is None:
            return own
        return own.new_zeros(batch, *own.shape[1:]).index_copy(0, rows, own[: len(rows)])

    return split(result)
'''
