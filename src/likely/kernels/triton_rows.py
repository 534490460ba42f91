"""What Triton compiles: one program takes one row of a tile, two times, and leaves its losses and its gradient.

Legend: C classes, K stored classes per row; `z`, `t` the logits of the student and the teacher, `g` the gradient.

The functions below are plain Python until `compiled` hands them to Triton, which must be told of the interpreter
(TRITON_INTERPRET=1) before that.  They stand in a module because Triton reads their text and their module's names.
A gradient may be written over its logits: a row is read whole before it is written, and a barrier stands between.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import triton.language as tl

_made: list[SimpleNamespace] = []


def compiled() -> SimpleNamespace:
    """The kernels `sparse` and `dense`, and Triton's `next_power_of_2`; Triton is imported by the first call."""
    if not _made:
        import triton
        import triton.language

        names = globals()
        names["tl"] = triton.language
        for name in ("_log1p", "_normaliser", "_sparse", "_dense"):
            names[name] = triton.jit(names[name])
        _made.append(SimpleNamespace(sparse=names["_sparse"], dense=names["_dense"], power=triton.next_power_of_2))
    return _made[0]


def _log1p(x):  # type: ignore[no-untyped-def]
    # log(1 + x) times what rounding 1 + x took from x or added to it.
    one = 1.0 + x
    return tl.where(one == 1.0, x, tl.log(one) * (x / tl.where(one == 1.0, 1.0, one - 1.0)))


def _normaliser(z_row, temperature, C, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest `z/T`, its first class, and `log1p` of the sum over the others of `exp(z/T − max)`."""
    lane = tl.arange(0, BLOCK)
    m = tl.full([BLOCK], float("-inf"), tl.float32)
    at = tl.zeros([BLOCK], tl.int32)
    others = tl.zeros([BLOCK], tl.float32)  # of a lane, less the 1 of its own largest
    for start in range(0, C, BLOCK):
        c = start + lane
        z = tl.load(z_row + c, mask=c < C, other=float("-inf")).to(tl.float32) / temperature
        e = tl.where(z == float("-inf"), 0.0, tl.exp(-tl.abs(z - m)))
        more = z > m
        others = tl.where(more, (others + 1.0) * e, others + e)
        at = tl.where(more, c, at)
        m = tl.where(more, z, m)
    top = tl.max(m, 0)
    first = tl.min(tl.where(m == top, at, C), 0)
    finite = tl.where(top == float("-inf"), 0.0, top)
    own = tl.where((m == top) & (at == first), 0.0, 1.0)
    log_A = _log1p(tl.sum((others + own) * tl.exp(m - finite), 0))
    log_A = tl.where(top == float("-inf"), float("-inf"), log_A)
    return finite, first, log_A


def _sparse(  # type: ignore[no-untyped-def]
    z_ptr,
    z_stride,
    g_ptr,
    g_stride,
    index_ptr,
    value_ptr,
    mass_ptr,
    floor_ptr,
    base_ptr,
    a_ptr,
    b_ptr,
    cross_entropy_ptr,
    A_ptr,
    temperature,
    C,
    K,
    FLOOR: tl.constexpr,
    BASE: tl.constexpr,
    GRADIENT: tl.constexpr,
    ADD: tl.constexpr,
    Z_LOSS: tl.constexpr,
    STORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_row = z_ptr + row * z_stride
    g_row = g_ptr + row * g_stride
    m, at, log_A = _normaliser(z_row, temperature, C, BLOCK)
    mass = tl.load(mass_ptr + row)
    floor = 0.0
    if FLOOR:
        floor = tl.load(floor_ptr + row)
    a = 0.0
    b = 0.0
    if GRADIENT:
        a = tl.load(a_ptr + row)
        if Z_LOSS:
            b = tl.load(b_ptr + row)
    scale = a / temperature
    z_scale = 2.0 * b * (m + log_A)

    # The stored classes, read before the gradient takes their place.
    k = tl.arange(0, STORE)
    stored = k < K
    i = tl.load(index_ptr + row * K + k, mask=stored, other=0)
    v = tl.load(value_ptr + row * K + k, mask=stored, other=0.0)
    s_k = tl.load(z_row + i, mask=stored, other=0.0).to(tl.float32) / temperature - m
    base_k = tl.full([STORE], 1.0, tl.float32)
    if BASE:
        base_k = tl.load(base_ptr + i, mask=stored, other=0.0)
    old_k = tl.zeros([STORE], tl.float32)
    old_at = 0.0
    if ADD:
        old_k = tl.load(g_row + i, mask=stored, other=0.0).to(tl.float32)
        old_at = tl.load(g_row + at).to(tl.float32)
    gone_k = stored & (s_k == float("-inf"))
    if FLOOR:
        expected = tl.sum(tl.where(gone_k, 0.0, v * s_k), 0)
    else:
        expected = tl.sum(tl.where(gone_k & (v == 0.0), 0.0, v * s_k), 0)
    tl.debug_barrier()

    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    based = tl.zeros([BLOCK], tl.float32)
    gone = tl.zeros([BLOCK], tl.float32)
    if FLOOR or GRADIENT:
        for start in range(0, C, BLOCK):
            c = start + lane
            inside = c < C
            s = tl.load(z_row + c, mask=inside, other=float("-inf")).to(tl.float32) / temperature - m
            base = tl.full([BLOCK], 1.0, tl.float32)
            if BASE:
                base = tl.load(base_ptr + c, mask=inside, other=0.0)
            if FLOOR:
                empty = s == float("-inf")
                based += tl.where(empty, 0.0, base * s)
                gone += tl.where(inside & empty & (base != 0.0), 1.0, 0.0)
            if GRADIENT:
                q = tl.exp(s - log_A)
                own = mass * q - floor * base
                total += tl.where(inside & (c != at), own, 0.0)
                g = tl.where(a == 0.0, 0.0, own * scale)
                if Z_LOSS:
                    g += tl.where(b == 0.0, 0.0, q * z_scale)
                if ADD:
                    g += tl.load(g_row + c, mask=inside, other=0.0).to(tl.float32)
                tl.store(g_row + c, g.to(g_ptr.dtype.element_ty), mask=inside)
    if FLOOR:
        # A class with logit −inf costs nothing where its whole mass, stored value and floor together, is 0.
        elsewhere = tl.sum(gone, 0) - tl.sum(tl.where(gone_k & (base_k != 0.0), 1.0, 0.0), 0)
        whole = tl.sum(tl.where(gone_k & (v + floor * base_k != 0.0), 1.0, 0.0), 0)
        impossible = (whole > 0.0) | ((floor != 0.0) & (elsewhere > 0.0))
        expected = tl.where(impossible, float("-inf"), expected + floor * tl.sum(based, 0))
    tl.store(cross_entropy_ptr + row, mass * log_A - expected)
    tl.store(A_ptr + row, m + log_A)
    if GRADIENT:
        tl.debug_barrier()
        value = tl.zeros([STORE], tl.float32)  # of the class: one that is stored twice has both
        for j in range(K):
            value += tl.where(i == tl.load(index_ptr + row * K + j), tl.load(value_ptr + row * K + j), 0.0)
        q_k = tl.exp(s_k - log_A)
        g_k = tl.where(a == 0.0, 0.0, (mass * q_k - floor * base_k - value) * scale)
        # The row's gradient sums to 0, and at the largest logit it is formed so: q − 1 would lose a small one.
        rest = tl.sum(total, 0) - tl.sum(tl.where(stored & (i != at), v, 0.0), 0)
        g_at = tl.where(a == 0.0, 0.0, -rest * scale)
        if Z_LOSS:
            g_k += tl.where(b == 0.0, 0.0, q_k * z_scale)
            g_at += tl.where(b == 0.0, 0.0, tl.exp(-log_A) * z_scale)
        tl.store(g_row + i, (g_k + old_k).to(g_ptr.dtype.element_ty), mask=stored & (i != at))
        tl.store(g_row + at, (g_at + old_at).to(g_ptr.dtype.element_ty))


def _dense(  # type: ignore[no-untyped-def]
    z_ptr,
    z_stride,
    g_ptr,
    g_stride,
    t_ptr,
    t_stride,
    class_weight_ptr,
    a_ptr,
    b_ptr,
    cross_entropy_ptr,
    entropy_ptr,
    kl_ptr,
    A_ptr,
    temperature,
    C,
    TEACHER: tl.constexpr,
    CLASS_WEIGHT: tl.constexpr,
    KNOWN: tl.constexpr,
    GRADIENT: tl.constexpr,
    ADD: tl.constexpr,
    Z_LOSS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    z_row = z_ptr + row * z_stride
    g_row = g_ptr + row * g_stride
    t_row = t_ptr + row * t_stride
    lane = tl.arange(0, BLOCK)
    m, at, log_A = _normaliser(z_row, temperature, C, BLOCK)
    t_m = 0.0
    t_log_A = 0.0
    mass = 1.0
    if TEACHER:
        t_m, _, t_log_A = _normaliser(t_row, temperature, C, BLOCK)
    else:
        masses = tl.zeros([BLOCK], tl.float32)
        for start in range(0, C, BLOCK):
            c = start + lane
            mu = tl.load(t_row + c, mask=c < C, other=0.0).to(tl.float32)
            if CLASS_WEIGHT:
                mu *= tl.load(class_weight_ptr + c, mask=c < C, other=0.0)
            masses += mu
        mass = tl.sum(masses, 0)
    a = 0.0
    b = 0.0
    if GRADIENT:
        a = tl.load(a_ptr + row)
        if Z_LOSS:
            b = tl.load(b_ptr + row)
    scale = a / temperature
    z_scale = 2.0 * b * (m + log_A)
    old_at = 0.0
    if ADD:
        old_at = tl.load(g_row + at).to(tl.float32)
    tl.debug_barrier()

    total = tl.zeros([BLOCK], tl.float32)
    expected = tl.zeros([BLOCK], tl.float32)
    negative = tl.zeros([BLOCK], tl.float32)
    ratios = tl.zeros([BLOCK], tl.float32)
    for start in range(0, C, BLOCK):
        c = start + lane
        inside = c < C
        s = tl.load(z_row + c, mask=inside, other=float("-inf")).to(tl.float32) / temperature - m
        if TEACHER:
            # From the difference of the logits, so that a row's divergence from itself is 0.
            t_s = tl.load(t_row + c, mask=inside, other=float("-inf")).to(tl.float32) / temperature - t_m
            log_mu = t_s - t_log_A
            mu = tl.exp(log_mu)
            ratio = (t_s - s) - (t_log_A - log_A)
        else:
            mu = tl.load(t_row + c, mask=inside, other=0.0).to(tl.float32)
            if CLASS_WEIGHT:
                mu *= tl.load(class_weight_ptr + c, mask=inside, other=0.0)
            log_mu = tl.log(tl.where(mu == 0.0, 1.0, mu))
            ratio = log_mu - (s - log_A)
        if KNOWN:
            negative += tl.where(mu == 0.0, 0.0, mu * log_mu)
            ratios += tl.where(mu == 0.0, 0.0, mu * ratio)
        else:
            expected += tl.where((mu == 0.0) & (s == float("-inf")), 0.0, mu * s)
        if GRADIENT:
            q = tl.exp(s - log_A)
            own = mass * q - mu
            total += tl.where(inside & (c != at), own, 0.0)
            g = tl.where(a == 0.0, 0.0, own * scale)
            if Z_LOSS:
                g += tl.where(b == 0.0, 0.0, q * z_scale)
            if ADD:
                g += tl.load(g_row + c, mask=inside, other=0.0).to(tl.float32)
            tl.store(g_row + c, g.to(g_ptr.dtype.element_ty), mask=inside)
    if KNOWN:
        log_mass = 0.0  # M log M, of a softmax 0
        if not TEACHER:
            log_mass = tl.where(mass > 0.0, mass * tl.log(tl.where(mass > 0.0, mass, 1.0)), 0.0)
        entropy = log_mass - tl.sum(negative, 0)
        kl = tl.sum(ratios, 0) - log_mass
        tl.store(entropy_ptr + row, entropy)
        tl.store(kl_ptr + row, kl)
        tl.store(cross_entropy_ptr + row, entropy + kl)
    else:
        tl.store(cross_entropy_ptr + row, mass * log_A - tl.sum(expected, 0))
    tl.store(A_ptr + row, m + log_A)
    if GRADIENT:
        tl.debug_barrier()
        g_at = tl.where(a == 0.0, 0.0, -tl.sum(total, 0) * scale)
        if Z_LOSS:
            g_at += tl.where(b == 0.0, 0.0, tl.exp(-log_A) * z_scale)
        tl.store(g_row + at, (g_at + old_at).to(g_ptr.dtype.element_ty))
