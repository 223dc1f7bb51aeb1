"""The few small functions that emitted code may carry with it: plain torch, each a dozen lines."""

from __future__ import annotations

LIFT = '''def lift(x):
    """One number per sample, in a shape that multiplies states."""
    return x.view(-1, *[1] * ({like}.ndim - 1))
'''

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

PICK = '''def pick(mask, count):
    """The indices of the rows where `mask` holds; their number is known, so shapes are static."""
    return torch.argsort(mask.to(torch.uint8), descending=True, stable=True)[:count]
'''

SPREAD = '''def spread(value, rows, batch):
    """The values of some rows in their places, zero elsewhere."""
    if isinstance(value, tuple):
        return tuple(spread(v, rows, batch) for v in value)
    return value.new_zeros(batch, *value.shape[1:]).index_copy(0, rows, value)
'''

EVALUATE = '''def evaluate(network, point, rows, /, **conditions):
    """A network on some rows of the batch; zero elsewhere."""
    if len(rows) == 0:
        return {nothing}
    conditions = {{name: value[rows] for name, value in conditions.items()}}
    return spread(network(*(x[rows] for x in point), **conditions), rows, len(point[0]))
'''

JVP = '''def jvp(network, point, direction, /, **conditions):
    """A network at a point, and its derivative along a direction (None: that argument stays).

    Values are cloned because torch.compile wants values and tangents to be laid out alike.
    """
    moving = [i for i, d in enumerate(direction) if d is not None]
    values = [point[i].clone(memory_format=torch.contiguous_format) for i in moving]
    tangents = [(torch.zeros_like(v) + direction[i]).to(v) for i, v in zip(moving, values)]

    def along(*moved):
        full = list(point)
        for i, x in zip(moving, moved):
            full[i] = x
        return network(*full, **conditions)

    return torch.func.jvp(along, tuple(values), tuple(tangents))
'''

DIFFERENCE = '''def difference(network, point, direction, /, **conditions):
    """The derivative of a network along a direction (None: that argument stays), as a central difference.

    For networks without a forward-mode derivative. The error grows with the square of STEP, and with
    1 / STEP times the precision of the arithmetic.
    """
    ahead = [x if d is None else x + STEP * d for x, d in zip(point, direction)]
    behind = [x if d is None else x - STEP * d for x, d in zip(point, direction)]
    after, before = network(*ahead, **conditions), network(*behind, **conditions)
    return {change}
'''

JVP_ROWS = '''def {name}_on(rows, network, point, direction, /, **conditions):
    """The same on some rows of the batch; zero elsewhere."""
    if len(rows) == 0:
        return {nothing}
    direction = [d[rows] if torch.is_tensor(d) else d for d in direction]
    conditions = {{name: value[rows] for name, value in conditions.items()}}
    found = {name}(network, [x[rows] for x in point], direction, **conditions)
    return spread(found, rows, len(point[0]))
'''
