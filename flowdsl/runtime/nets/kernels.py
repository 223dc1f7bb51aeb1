"""Triton kernels of attention with its derivatives, which never hold a matrix of token × token.

With a = 1/√width, all sums taken over the keys of one query, and dots for tangents:

    S = a q kᵀ   P = exp(S − lse)   o = P v
    Ṡ = a (q̇ kᵀ + q k̇ᵀ)   m = rowsum(P ∘ Ṡ)   ȯ = (P ∘ Ṡ) v + P v̇ − m o

The forward kernel takes the sums of P, P ∘ Ṡ and their products online, as FlashAttention does for
the first of them (arXiv:2205.14135; with a tangent: sCM, arXiv:2410.11081). The backward
kernels make P anew from `lse`. With gradients g of o and ġ of ȯ,

    A = g vᵀ + ġ v̇ᵀ   C = ġ vᵀ   c = ġ·o   d = g·o + ġ·ȯ
    G = P ∘ (A − d) + P ∘ (Ṡ − m) ∘ (C − c)   Ġ = P ∘ (C − c)

are the gradients of S and Ṡ. It needs no further sums over keys, for these are what rowsum(P ∘ C)
and rowsum(P ∘ A) + rowsum(Ṗ ∘ C) come to. Without tangents this is the usual backward pass.

Triton compiles this file; nothing else imports it before a kernel is wanted (see
`kernel_attention`). Blocks beyond the ends are masked, so any number of tokens and any width goes.
"""

# Annotations are read by Triton, so they are not put off.
import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def _block(x, strides, which, rows, count, features, width):
    """`(rows, features)` of one head of one sample, with zeros beyond the ends."""
    place = x + which[0] * strides[0] + which[1] * strides[1]
    place += rows[:, None] * strides[2] + features[None, :] * strides[3]
    return tl.load(place, mask=(rows[:, None] < count) & (features[None, :] < width), other=0.0)


@triton.jit
def _put(x, strides, which, rows, count, features, width, values):
    place = x + which[0] * strides[0] + which[1] * strides[1]
    place += rows[:, None] * strides[2] + features[None, :] * strides[3]
    mask = (rows[:, None] < count) & (features[None, :] < width)
    tl.store(place, values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _dot(x, y, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """`x y`, added up in WIDE. Triton's interpreter cannot multiply bfloat16, whose products are
    exact in float32: there the operands are widened, which changes nothing.
    """
    if PRECISION == "interpreted":
        return tl.dot(x.to(WIDE), y.to(WIDE), out_dtype=WIDE)
    else:  # noqa: RET505 - which of the two is compiled is decided beforehand
        return tl.dot(x, y, input_precision=PRECISION, out_dtype=WIDE)


@triton.jit
def _which(heads):
    """Sample and head of this program."""
    pair = tl.program_id(0).to(tl.int64)
    return pair // heads, pair % heads


@triton.jit
def dual_forward(
    q, k, v, dq, dk, dv, o, do, lse, mean,
    q_strides, k_strides, v_strides, dq_strides, dk_strides, dv_strides, o_strides, do_strides,
    heads, queries, keys, width,
    SCALE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o, ȯ, the logarithm to base two of the row sums of exp(S), and m, for one block of queries.

    A constant per query that is taken off Ṡ doesn't change ȯ. Taking off its mean over the first
    block of keys keeps the two sums in ȯ from being large and nearly equal.
    """
    which = _which(heads)
    low = v.dtype.element_ty
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    features = tl.arange(0, FEATURES)
    query = _block(q, q_strides, which, rows, queries, features, width)
    moving = _block(dq, dq_strides, which, rows, queries, features, width)
    top = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], WIDE)
    slope = tl.zeros([ROWS], WIDE)
    shift = tl.zeros([ROWS], WIDE)
    value = tl.zeros([ROWS, FEATURES], WIDE)
    tangent = tl.zeros([ROWS, FEATURES], WIDE)
    for first in range(0, keys, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        key = tl.trans(_block(k, k_strides, which, columns, keys, features, width))
        other = tl.trans(_block(dk, dk_strides, which, columns, keys, features, width))
        scores = _dot(query, key, WIDE, PRECISION) * (SCALE * LOG2E)
        scores = tl.where(columns[None, :] < keys, scores, float("-inf"))
        slopes = _dot(moving, key, WIDE, PRECISION) + _dot(query, other, WIDE, PRECISION)
        slopes *= SCALE

        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        rescale = tl.exp2(top - higher)
        top = higher
        here = tl.sum(weights, 1)
        if first == 0:
            shift = tl.sum(weights * slopes, 1) / here
        weighted = weights * (slopes - shift[:, None])
        total = total * rescale + here
        slope = slope * rescale + tl.sum(weighted, 1)

        content = _block(v, v_strides, which, columns, keys, features, width)
        change = _block(dv, dv_strides, which, columns, keys, features, width)
        weights = weights.to(low)
        value = value * rescale[:, None] + _dot(weights, content, WIDE, PRECISION)
        tangent = tangent * rescale[:, None] + _dot(weights, change, WIDE, PRECISION)
        tangent += _dot(weighted.to(low), content, WIDE, PRECISION)
    value = value / total[:, None]
    slope = slope / total
    tangent = tangent / total[:, None] - slope[:, None] * value
    _put(o, o_strides, which, rows, queries, features, width, value)
    _put(do, do_strides, which, rows, queries, features, width, tangent)
    line = tl.program_id(0).to(tl.int64) * queries + rows
    tl.store(lse + line, top + tl.log2(total), mask=rows < queries)
    tl.store(mean + line, slope + shift, mask=rows < queries)


@triton.jit
def backward_queries(
    q, k, v, dq, dk, dv, o, do, g, dg, lse, mean, gq, gdq, inner, outer,
    q_strides, k_strides, v_strides, dq_strides, dk_strides, dv_strides, o_strides, do_strides,
    g_strides, dg_strides, gq_strides, gdq_strides,
    heads, queries, keys, width,
    DUAL: tl.constexpr,
    SCALE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of q and q̇ for one block of queries; also writes c and d, for the keys.
    Without DUAL no gradient comes from ȯ, and q̇, c and all other tangents are left alone.
    """
    which = _which(heads)
    low = v.dtype.element_ty
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    line = tl.program_id(0).to(tl.int64) * queries + rows
    features = tl.arange(0, FEATURES)
    query = _block(q, q_strides, which, rows, queries, features, width)
    grad = _block(g, g_strides, which, rows, queries, features, width)
    output = _block(o, o_strides, which, rows, queries, features, width).to(WIDE)
    sums = tl.load(lse + line, mask=rows < queries, other=0.0)
    middle = tl.sum(grad.to(WIDE) * output, 1)
    found = tl.zeros([ROWS, FEATURES], WIDE)
    moved = tl.zeros([ROWS, FEATURES], WIDE)
    if DUAL:
        moving = _block(dq, dq_strides, which, rows, queries, features, width)
        outgrad = _block(dg, dg_strides, which, rows, queries, features, width)
        slope = tl.load(mean + line, mask=rows < queries, other=0.0)
        change = _block(do, do_strides, which, rows, queries, features, width).to(WIDE)
        level = tl.sum(outgrad.to(WIDE) * output, 1)
        middle += tl.sum(outgrad.to(WIDE) * change, 1)
        tl.store(outer + line, level, mask=rows < queries)
    tl.store(inner + line, middle, mask=rows < queries)
    for first in range(0, keys, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        key = _block(k, k_strides, which, columns, keys, features, width)
        content = tl.trans(_block(v, v_strides, which, columns, keys, features, width))
        scores = _dot(query, tl.trans(key), WIDE, PRECISION) * (SCALE * LOG2E)
        weights = tl.where(columns[None, :] < keys, tl.exp2(scores - sums[:, None]), 0.0)
        pulled = _dot(grad, content, WIDE, PRECISION)
        if DUAL:
            other = _block(dk, dk_strides, which, columns, keys, features, width)
            moved_content = tl.trans(_block(dv, dv_strides, which, columns, keys, features, width))
            pulled += _dot(outgrad, moved_content, WIDE, PRECISION)
            slopes = _dot(moving, tl.trans(key), WIDE, PRECISION)
            slopes += _dot(query, tl.trans(other), WIDE, PRECISION)
            drawn = weights * (_dot(outgrad, content, WIDE, PRECISION) - level[:, None])
            score = weights * (pulled - middle[:, None]) + drawn * (slopes * SCALE - slope[:, None])
            drawn = drawn.to(low)
            found += _dot(drawn, other, WIDE, PRECISION)
            moved += _dot(drawn, key, WIDE, PRECISION)
        else:
            score = weights * (pulled - middle[:, None])
        found += _dot(score.to(low), key, WIDE, PRECISION)
    _put(gq, gq_strides, which, rows, queries, features, width, found * SCALE)
    if DUAL:
        _put(gdq, gdq_strides, which, rows, queries, features, width, moved * SCALE)


@triton.jit
def backward_keys(
    q, k, v, dq, dk, dv, g, dg, lse, mean, inner, outer, gk, gv, gdk, gdv,
    q_strides, k_strides, v_strides, dq_strides, dk_strides, dv_strides, g_strides, dg_strides,
    gk_strides, gv_strides, gdk_strides, gdv_strides,
    heads, queries, keys, width,
    DUAL: tl.constexpr,
    SCALE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, FEATURES: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of k, v, k̇ and v̇ for one block of keys, from c and d of `backward_queries`."""
    which = _which(heads)
    low = v.dtype.element_ty
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    features = tl.arange(0, FEATURES)
    key = tl.trans(_block(k, k_strides, which, columns, keys, features, width))
    content = tl.trans(_block(v, v_strides, which, columns, keys, features, width))
    if DUAL:
        other = tl.trans(_block(dk, dk_strides, which, columns, keys, features, width))
        change = tl.trans(_block(dv, dv_strides, which, columns, keys, features, width))
    found = tl.zeros([COLUMNS, FEATURES], WIDE)
    moved = tl.zeros([COLUMNS, FEATURES], WIDE)
    found_value = tl.zeros([COLUMNS, FEATURES], WIDE)
    moved_value = tl.zeros([COLUMNS, FEATURES], WIDE)
    for first in range(0, queries, ROWS):
        rows = first + tl.arange(0, ROWS)
        line = tl.program_id(0).to(tl.int64) * queries + rows
        query = _block(q, q_strides, which, rows, queries, features, width)
        grad = _block(g, g_strides, which, rows, queries, features, width)
        sums = tl.load(lse + line, mask=rows < queries, other=0.0)
        middle = tl.load(inner + line, mask=rows < queries, other=0.0)
        scores = _dot(query, key, WIDE, PRECISION) * (SCALE * LOG2E)
        weights = tl.exp2(scores - sums[:, None])
        pulled = _dot(grad, content, WIDE, PRECISION)
        kept = tl.trans(weights.to(low))
        found_value += _dot(kept, grad, WIDE, PRECISION)
        if DUAL:
            moving = _block(dq, dq_strides, which, rows, queries, features, width)
            outgrad = _block(dg, dg_strides, which, rows, queries, features, width)
            slope = tl.load(mean + line, mask=rows < queries, other=0.0)
            level = tl.load(outer + line, mask=rows < queries, other=0.0)
            pulled += _dot(outgrad, change, WIDE, PRECISION)
            slopes = _dot(moving, key, WIDE, PRECISION) + _dot(query, other, WIDE, PRECISION)
            slopes = slopes * SCALE - slope[:, None]
            drawn = weights * (_dot(outgrad, content, WIDE, PRECISION) - level[:, None])
            score = weights * (pulled - middle[:, None]) + drawn * slopes
            drawn = tl.trans(drawn.to(low))
            found += _dot(drawn, moving, WIDE, PRECISION)
            moved += _dot(drawn, query, WIDE, PRECISION)
            slopes = tl.trans((weights * slopes).to(low))
            found_value += _dot(slopes, outgrad, WIDE, PRECISION)
            moved_value += _dot(kept, outgrad, WIDE, PRECISION)
        else:
            score = weights * (pulled - middle[:, None])
        found += _dot(tl.trans(score.to(low)), query, WIDE, PRECISION)
    _put(gk, gk_strides, which, columns, keys, features, width, found * SCALE)
    _put(gv, gv_strides, which, columns, keys, features, width, found_value)
    if DUAL:
        _put(gdk, gdk_strides, which, columns, keys, features, width, moved * SCALE)
        _put(gdv, gdv_strides, which, columns, keys, features, width, moved_value)
