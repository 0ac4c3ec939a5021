"""The algebra: every law of kernels and axis maps, against plain matrices."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.ops import axis_maps as named

NEAR = {"atol": 1e-10, "rtol": 0}


@st.composite
def kernels(draw: st.DrawFn, new: int | None = None, old: int | None = None) -> Kernel:
    """Sparse kernels with repeated, missing and shared sources, and dense ones."""
    new = new or draw(st.integers(1, 7))
    old = old or draw(st.integers(1, 7))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if draw(st.integers(0, 5)) == 0:
        return Kernel.from_matrix(rng.standard_normal((new, old)))
    slots = draw(st.integers(0, 3))
    coef = rng.standard_normal((new, slots)) * (rng.random((new, slots)) < 0.7)
    kernel = Kernel.gather(rng.integers(0, old, (new, slots)), coef, old=old)
    if draw(st.booleans()):
        share = rng.standard_normal(new) * (rng.random(new) < 0.5)
        kernel = kernel.plus(Kernel.shared(np.full(old, 1.0 / old), share))
    return kernel


@st.composite
def maps(draw: st.DrawFn) -> AxisMap:
    """Every named map at every size that it takes."""
    old = draw(st.integers(1, 6))
    new = draw(st.integers(old, 3 * old))
    name = draw(st.sampled_from(sorted(NAMED)))
    if name in ("tile", "uneven"):
        new = old * draw(st.integers(1, 3))
    return NAMED[name](old, new)


NAMED = {
    "tile": named.tile,
    "uneven": lambda old, new: named.uneven(old, new, tuple(range(1, new // old + 1))),
    "repeat": named.repeat,
    "circular": named.circular,
    "isometric": named.isometric,
    "scaled isometric": lambda old, new: named.isometric(old, new, (new / old) ** 0.5),
    "pad": lambda old, new: named.pad(old, new, scale=(new / old) ** 0.5),
    "mean pad": lambda old, new: named.pad(old, new, scale=(new / old) ** 0.5, mean=True),
    "fresh": named.fresh,
    "fresh pairs": lambda old, new: named.fresh(old, new, pairs=(new - old) % 2 == 0),
    "random": named.random,
    "random counts": lambda old, new: named.random(
        old, new, counts=(new - old + 1, *[1] * (old - 1))
    ),
    "lemon": lambda old, new: named.lemon(old, new, mean=False),
    "mean lemon": lambda old, new: named.lemon(old, new, mean=True),
}


@given(kernels())
def test_apply_is_the_matrix(kernel: Kernel) -> None:
    """A kernel applied to values is its matrix times the values."""
    values = np.arange(kernel.old * 2.0).reshape(kernel.old, 2) + 1
    np.testing.assert_allclose(kernel.apply(values), kernel.matrix() @ values, **NEAR)


@given(kernels())
def test_transpose(kernel: Kernel) -> None:
    """Transposing twice is the identity, once is the transposed matrix."""
    np.testing.assert_allclose(kernel.transpose().matrix(), kernel.matrix().T, **NEAR)
    np.testing.assert_allclose(kernel.transpose().transpose().matrix(), kernel.matrix(), **NEAR)


@given(st.data())
def test_composition_is_the_product(data: st.DataObject) -> None:
    """`b.after(a)` is the matrix product b·a, and composing is associative."""
    a = data.draw(kernels())
    b = data.draw(kernels(old=a.new))
    c = data.draw(kernels(old=b.new))
    np.testing.assert_allclose(b.after(a).matrix(), b.matrix() @ a.matrix(), **NEAR)
    left, right = c.after(b).after(a), c.after(b.after(a))
    np.testing.assert_allclose(left.matrix(), right.matrix(), **NEAR)


@given(kernels(), kernels())
def test_kronecker_and_direct_sum(a: Kernel, b: Kernel) -> None:
    """Products and concatenations of axes are the Kronecker product and the block diagonal."""
    np.testing.assert_allclose(a.kron(b).matrix(), np.kron(a.matrix(), b.matrix()), **NEAR)
    block = np.zeros((a.new + b.new, a.old + b.old))
    block[: a.new, : a.old], block[a.new :, a.old :] = a.matrix(), b.matrix()
    np.testing.assert_allclose(a.direct_sum(b).matrix(), block, **NEAR)


@given(st.data())
def test_sums_norms_and_traces(data: st.DataObject) -> None:
    """Sums of rows, columns, squares and the diagonal agree with the matrix."""
    a = data.draw(kernels())
    b = data.draw(kernels(new=a.new, old=a.old))
    np.testing.assert_allclose(a.plus(b).matrix(), a.matrix() + b.matrix(), **NEAR)
    np.testing.assert_allclose(a.row_sums(), a.matrix().sum(axis=1), **NEAR)
    np.testing.assert_allclose(a.column_sums(), a.matrix().sum(axis=0), **NEAR)
    np.testing.assert_allclose(a.square_norm, (a.matrix() ** 2).sum(), atol=1e-9)
    square = data.draw(kernels(new=a.old, old=a.old))
    np.testing.assert_allclose(square.trace(), np.trace(square.matrix()), **NEAR)


@given(st.data())
def test_gathered_rows(data: st.DataObject) -> None:
    """The rows that a block gathers are enough for it, but for shared rows, and all are used."""
    kernel = data.draw(kernels())
    start = data.draw(st.integers(0, kernel.new))
    stop = data.draw(st.integers(start, kernel.new))
    gather = Kernel.gather(kernel.index, kernel.coef, old=kernel.old)
    used = np.flatnonzero(np.abs(gather.matrix()[start:stop]).sum(axis=0))
    assert list(kernel.gathered_rows(start, stop)) == list(used)


@given(kernels(), st.floats(-3, 3))
def test_scaled_and_masked(kernel: Kernel, factor: float) -> None:
    """Factors and masks act on rows, and zero rows are found."""
    keep = np.arange(kernel.new) % 2 == 0
    np.testing.assert_allclose(kernel.scaled(factor).matrix(), factor * kernel.matrix(), **NEAR)
    masked = kernel.masked(keep)
    np.testing.assert_allclose(masked.matrix(), kernel.matrix() * keep[:, None], **NEAR)
    assert (masked.zero_rows | keep).all()


@given(kernels())
def test_repeated_sources(kernel: Kernel) -> None:
    """Of the rows that take one source each, the first to take it repeats nothing."""
    again = kernel.repeats
    if kernel.is_gather and kernel.index.shape[1] == 1:
        used = ~kernel.zero_rows
        assert not again[~used].any()
        first = kernel.index[used & ~again, 0].tolist()
        assert sorted(first) == sorted(set(kernel.index[used, 0].tolist()))
    else:
        assert kernel.index.shape[1] == 1 or not again.any()


@given(st.one_of(kernels(), maps().map(lambda m: m.write), maps().map(lambda m: m.read)))
def test_kinds_of_rows(kernel: Kernel) -> None:
    """Each row is what its entries say; of the plain copies of one source the first is old."""
    rows, seen = kernel.row_kinds, set[int]()
    for kind, source, entries in zip(
        rows.kind.tolist(), rows.source.tolist(), kernel.matrix(), strict=True
    ):
        if source < 0:
            assert kind == ("mixed" if entries.any() else "new")
            continue
        assert np.flatnonzero(entries).tolist() == [source]
        plain = "copied" if source in seen else "old"
        assert kind == (plain if entries[source] == 1.0 else "scaled")
        seen |= {source} if kind == "old" else set()
    alone = rows.source[rows.source >= 0].tolist()
    assert sorted(rows.source[rows.first].tolist()) == sorted(set(alone))


@pytest.mark.parametrize("rho", [1.0, 0.25, -3.0])
def test_scalar_finds_multiples_of_one(rho: float) -> None:
    """ρ·I is recognised in every form, and nothing else is."""
    size = 5
    assert Kernel.identity(size, rho).scalar() == rho
    assert Kernel.from_matrix(rho * np.eye(size)).scalar() == rho
    halves = Kernel.gather(np.stack([np.arange(size)] * 2, 1), rho / 2, old=size)
    assert halves.scalar() == rho
    assert Kernel.gather(np.arange(size)[::-1], rho, old=size).scalar() is None
    assert Kernel.identity(size).plus(Kernel.shared(np.ones(size), np.ones(size))).scalar() is None
    assert Kernel.gather(np.arange(size), [rho] * 4 + [2 * rho], old=size).scalar() is None


@given(maps())
def test_named_maps_keep_the_law(m: AxisMap) -> None:
    """readᵀ·write = I and readᵀ·write_normed = I for every named map."""
    eye = np.eye(m.old)
    np.testing.assert_allclose(m.read.matrix().T @ m.write.matrix(), eye, **NEAR)
    np.testing.assert_allclose(m.read.matrix().T @ m.write_normed.matrix(), eye, **NEAR)
    assert m.keeps


@given(maps())
def test_the_inverse_undoes_the_map(m: AxisMap) -> None:
    """Growing and shrinking back is the identity, for producers, consumers and norms."""
    back = m.then(m.inverse())
    for kernel in (back.write, back.read, back.write_normed):
        np.testing.assert_allclose(kernel.matrix(), np.eye(m.old), **NEAR)


@given(maps())
def test_the_dual_swaps(m: AxisMap) -> None:
    """Gradients map with read and write swapped; the dual keeps the law too."""
    dual = m.dual()
    assert dual.write is m.read
    assert dual.read is m.write_normed
    np.testing.assert_allclose(dual.read.matrix().T @ dual.write.matrix(), np.eye(m.old), **NEAR)


@given(st.data())
def test_maps_compose(data: st.DataObject) -> None:
    """Two growths one after the other keep the law and are the products of their kernels."""
    first = data.draw(maps())
    second = data.draw(st.sampled_from(sorted(NAMED)))
    new = first.new * data.draw(st.integers(1, 2))
    later = NAMED[second](first.new, new)
    both = first.then(later)
    assert both.keeps
    np.testing.assert_allclose(
        both.write.matrix(), later.write.matrix() @ first.write.matrix(), **NEAR
    )


@given(maps(), maps())
def test_composite_axes_keep_the_law(a: AxisMap, b: AxisMap) -> None:
    """Products and concatenations of maps that keep the law keep it."""
    assert a.kron(b).keeps
    assert a.direct_sum(b).keeps


@given(maps())
def test_null_space_is_invisible(m: AxisMap) -> None:
    """What the projector lets through vanishes on everything the grown network visits."""
    project = m.null_space(behind_norm=True).matrix().T  # X · project
    np.testing.assert_allclose(project @ m.write_normed.matrix(), 0, **NEAR)
    assert not project[:, m.fresh].any()  # fresh units do carry activations
    free = ~m.fresh
    np.testing.assert_allclose(
        (project @ project)[np.ix_(free, free)], project[np.ix_(free, free)], **NEAR
    )


@pytest.mark.parametrize(
    ("name", "selective"),
    [("tile", True), ("circular", True), ("fresh", True), ("isometric", False), ("pad", False)],
)
def test_selective(name: str, selective: bool) -> None:
    """Only plain copies, or units that nobody reads, may pass a non-linearity."""
    assert NAMED[name](4, 8).selective is selective


@given(maps())
def test_gains_are_copied(m: AxisMap) -> None:
    """Every new gain is the gain of its source; coordinates without one are left to be 1."""
    rows = m.gain.matrix()
    sums = np.where(m.gain.zero_rows, 0.0, 1.0)
    np.testing.assert_allclose(rows.sum(axis=1), sums, **NEAR)
    assert ((rows == 0) | np.isclose(rows, 1)).all()


def test_fresh_units_stay_fresh_when_copied() -> None:
    """A copy of a fresh unit is fresh too."""
    both = named.fresh(2, 3).then(named.tile(3, 6))
    assert both.fresh.tolist() == [False, False, True] * 2


@given(st.data())
def test_pairs_cancel(data: st.DataObject) -> None:
    """Twins draw the same producers and opposite consumers, alone and inside composite axes."""
    pairs = named.fresh(2, 6, pairs=True)
    assert pairs.pairs is not None
    assert pairs.pairs.coef[:, 0].tolist() == [0, 0, 1, -1, 1, -1]
    inner, other = data.draw(maps()), data.draw(maps())
    for m in (pairs, pairs.kron(inner), inner.kron(pairs), inner.direct_sum(pairs).kron(other)):
        assert m.pairs is not None
        np.testing.assert_allclose(m.draws.matrix().T @ m.pairs.matrix(), 0, **NEAR)
        np.testing.assert_array_equal(m.draws.zero_rows, ~m.fresh)
        assert m.keeps
    torn = AxisMap.of(pairs.write, pairs.read, fresh=pairs.fresh, pairs=pairs.draws)
    assert not torn.keeps


def test_wide_maps_stay_sparse() -> None:
    """Composing, inverting and projecting 8,192 → 16,384 takes megabytes, no square matrix."""
    tracemalloc.start()
    m = named.pad(8192, 16384, scale=2**0.5, mean=True).then(named.tile(16384, 32768))
    assert m.keeps
    m.null_space(behind_norm=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
