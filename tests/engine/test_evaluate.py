"""The evaluator against dense float64 algebra, and the law that blocks leave no trace."""

from __future__ import annotations

import math
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Stored
from growkit.engine import row_noise
from growkit.engine.evaluate import DTYPES, evaluate
from growkit.engine.working_memory import block_rows, working_bytes
from growkit.planning.formula import Formula, Noise, Ones, Term

PLENTY = 1 << 40
ROUNDING = {"F64": 1e-13, "F32": 2e-6, "F16": 2e-3, "BF16": 1e-2}  # relative, arithmetic included
dtypes = pytest.mark.parametrize("dtype", list(DTYPES))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Threads that wait for each other over tiny tensors cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class World:
    """Stored tensors in memory, and how they were read."""

    def __init__(self):
        self.tensors = {}
        self.reads = []

    def add(self, values, dtype="F32", name=None):
        """Store a tensor; its values are rounded to the dtype."""
        tensor = torch.as_tensor(np.asarray(values)).to(DTYPES[dtype]).contiguous()
        stored = Stored("small", name or f"t{len(self.tensors)}", tuple(tensor.shape), dtype)
        self.tensors[stored] = tensor
        return stored

    def rows(self, stored, start, stop):
        """Raw bytes of rows, read-only, and the whole of a tensor without dims."""
        self.reads.append((stored.name, start, stop))
        tensor = self.tensors[replace(stored, by=None)]
        part = tensor.reshape(1) if tensor.ndim == 0 else tensor[start:stop]
        return memoryview(part.reshape(-1).view(torch.uint8).numpy().tobytes())

    def run(self, formula, rows=None):
        """(bytes, blocks) of an output tensor, in blocks of so many rows."""
        budget = PLENTY if rows is None else working_bytes(formula, rows)
        found = list(evaluate(formula, self.rows, budget=budget))
        assert [b.start for b in found[1:]] == [b.stop for b in found[:-1]]
        assert found[0].start == 0
        assert found[-1].stop == (formula.shape[0] if formula.shape else 1)
        if rows is not None:
            assert max(b.stop - b.start for b in found) <= rows
        data = b"".join(b.data for b in found)
        assert len(data) == formula.nbytes
        return data, found

    def values(self, formula, rows=None):
        """The output tensor in float64."""
        data = bytearray(self.run(formula, rows)[0])
        flat = torch.frombuffer(data, dtype=DTYPES[formula.dtype])
        return flat.to(torch.float64).numpy().reshape(formula.shape)

    def expected(self, terms, *, size_of=lambda x: x):
        """The same by dense matrices in float64; with np.abs: how large the summands are."""
        total = 0.0
        for term in terms:
            source, scale = term.source, term.scale
            if isinstance(source, Stored):
                x = self.tensors[replace(source, by=None)].to(torch.float64).numpy()
                if source.by:
                    by = self.tensors[source.by].to(torch.float64).numpy()
                    x = x * by.reshape(-1, *[1] * (x.ndim - 1))
            elif isinstance(source, Ones):
                x = np.ones(source.shape)
            else:
                x = row_noise.draw(source, 0, (source.shape or (1,))[0]).astype(np.float64)
                x = x.reshape(source.shape) * row_noise.UNIT
                scale *= self.std(source)
            for dim, kernel in enumerate(term.kernels):
                if kernel is not None:
                    letters = string.ascii_lowercase[: x.ndim]
                    to = letters.replace(letters[dim], "z")
                    matrix = size_of(kernel.matrix())
                    x = np.einsum(f"z{letters[dim]},{letters}->{to}", matrix, size_of(x))
            total = total + size_of(scale * x)
        return total

    def std(self, source):
        """The standard deviation that the noise was asked for."""
        if source.snr_db is None:
            return source.std
        mean_square = np.mean(self.expected(source.signal) ** 2)
        return math.sqrt(mean_square / 10 ** (source.snr_db / 10) / source.spread)

    def check(self, formula, rows=None):
        """The output agrees with the dense algebra."""
        found, expected = self.values(formula, rows), self.expected(formula.terms)
        room = self.expected(formula.terms, size_of=np.abs) * ROUNDING[formula.dtype]
        smallest = 3e-8 if formula.dtype == "F16" else 0.0  # half a step near zero
        assert (np.abs(found - expected) <= room + smallest).all()


def random(*shape, seed=0):
    """Normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape)


def growths(old, new, seed=0):
    """One kernel of every kind, shape (new, old)."""
    rng = np.random.default_rng(seed)
    index = rng.integers(0, old, new)
    holes = np.where(rng.random(new) < 0.3, 0.0, 1.5)
    several = Kernel.gather(
        rng.integers(0, old, (new, 3)),
        rng.standard_normal((new, 3)) * (rng.random((new, 3)) < 0.6),
        old=old,
    )
    shared = Kernel.shared(rng.standard_normal(old), rng.standard_normal(new))
    tile = Kernel.gather(np.arange(new) % old, old=old)
    return {
        "tile": tile,
        "stretches": Kernel.gather(np.arange(new) % old, np.arange(new) < old, old=old),
        "moved": Kernel.gather(index, old=old),
        "scaled": Kernel.gather(index, holes, old=old),
        "several": several,
        "halves": Kernel.gather(np.stack([index, index[::-1]], 1), 0.5, old=old),
        "shared": shared,
        "mean": several.plus(shared).plus(Kernel.shared(np.full(old, 1 / old), holes)),
        "dense": Kernel.from_matrix(rng.standard_normal((new, old))),
        "nothing": Kernel.gather(index, 0.0, old=old),
    }


KINDS = list(growths(2, 2))
SHAPES = {"1-d": (90,), "writes": (90, 12), "reads": (10, 150), "3-d": (70, 3, 5)}


def two_terms(world, shape, kind, dtype, source_dtype):
    """A grown tensor plus snr noise on it: one kind of kernel on all dims."""
    grown = tuple(size + size // 2 + 1 for size in shape)
    stored = world.add(random(*shape), source_dtype)
    kernels = [
        growths(o, n, seed=i)[kind] for i, (o, n) in enumerate(zip(shape, grown, strict=True))
    ]
    term = Term(stored, tuple(kernels), scale=0.75)
    noisy = Noise(0, 1, "w", grown, snr_db=5.0, signal=(term,), spread=0.5)
    spoilt = (growths(grown[0], grown[0], seed=7)[kind], *[None] * (len(shape) - 1))
    return (
        Formula("w", grown, dtype, (term,)),
        Formula("w", grown, dtype, (term, Term(noisy, spoilt))),
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kernel_on_every_dim(kind, shape):
    """Each kind of kernel agrees with its matrix, whatever the shape."""
    for dtype, source in (("F64", "F64"), ("F32", "F32"), ("BF16", "BF16"), ("F16", "F64")):
        world = World()
        for formula in two_terms(world, shape, kind, dtype, source):
            world.check(formula)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@dtypes
def test_blocks_leave_no_trace(kind, shape, dtype):
    """One row at a time, some, or all at once: the same bytes, −0 and shared rows included."""
    world = World()
    for formula in two_terms(world, shape, kind, dtype, "BF16"):
        whole = world.run(formula)[0]
        for rows in (1, 7, 64, 67):
            assert world.run(formula, rows)[0] == whole


def test_long_sums_leave_no_trace():
    """Where shared rows and mean squares take several chunks, blocks still do not show."""
    world = World()
    stored = world.add(random(300, 1000), "BF16")
    mean = growths(300, 450)["mean"]
    term = Term(stored, (mean, growths(1000, 1100)["mean"]))
    noisy = Noise(0, 1, "w", (450, 1100), snr_db=0.0, signal=(term,))
    formula = Formula("w", (450, 1100), "F32", (term, Term(noisy, (None, None))))
    world.check(formula)
    whole = world.run(formula)[0]
    assert all(world.run(formula, rows)[0] == whole for rows in (64, 449))


def test_minus_zero_is_not_touched_by_neighbours():
    """A row that uses fewer columns of its kernel than its neighbour is the same without it."""
    world = World()
    stored = world.add(np.full((2, 3), -0.0), "F32")
    kernel = Kernel.gather([[0, 0], [0, 1]], [[1.0, 0.0], [1.0, 2.0]], old=2)
    formula = Formula("w", (2, 3), "F32", (Term(stored, (kernel, None)),))
    assert world.run(formula, 1)[0] == world.run(formula, 2)[0]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_single_number(shape):
    """A tensor without dims is one row: scaled, with noise, and by snr."""
    world = World()
    stored = world.add(np.full(shape, 3.0), "BF16")
    kernels = (None,) * len(shape)
    term = Term(stored, kernels, 0.5)
    noisy = Noise(0, 1, "w", shape, snr_db=20.0, signal=(term,))
    formula = Formula("w", shape, "F32", (term, Term(noisy, kernels)))
    world.check(formula)
    assert world.values(Formula("w", shape, "F32", (term,))) == 1.5


@st.composite
def formulas(draw):
    """A world and a formula of random kernels, shapes and dtypes."""
    world = World()
    sizes = st.integers(1, 9)
    new = tuple(draw(st.lists(sizes, min_size=1, max_size=3)))
    dtype = draw(st.sampled_from(list(DTYPES)))
    terms = []
    for seed in range(draw(st.integers(1, 3))):
        kinds = [draw(st.sampled_from([*KINDS, None])) for _ in new]
        old = tuple(n if k is None else draw(sizes) for n, k in zip(new, kinds, strict=True))
        made = zip(old, new, kinds, strict=True)
        kernels = tuple(None if k is None else growths(o, n, draw(sizes))[k] for o, n, k in made)
        source = world.add(random(*old, seed=seed), draw(st.sampled_from(list(DTYPES))))
        if draw(st.booleans()):
            source = Noise(seed, 0, "w", old, std=draw(st.sampled_from([0.02, 1.5])))
        terms.append(Term(source, kernels, draw(st.sampled_from([1.0, 0.5, -1.7]))))
    return world, Formula("w", new, dtype, tuple(terms))


@settings(max_examples=300)
@given(formulas(), st.integers(1, 9))
def test_any_formula(world_and_formula, rows):
    """Random formulas agree with the dense algebra, in blocks of any size the same bytes."""
    world, formula = world_and_formula
    world.check(formula)
    assert world.run(formula, rows)[0] == world.run(formula)[0]


# -- bytes that are moved, and rounding ------------------------------------------------------------


@dtypes
def test_what_is_moved_keeps_every_bit(dtype):
    """−0, the smallest and the largest numbers and NaN payloads survive; zero rows are +0."""
    world = World()
    bits = np.random.default_rng(0).integers(0, 256, 12 * 6 * 8, dtype=np.uint8)
    special = torch.from_numpy(bits).view(DTYPES[dtype]).reshape(-1, 6)[:12]
    stored = Stored("small", "w", (12, 6), dtype)
    world.tensors[stored] = special
    down, up = 1 / math.sqrt(1.5), math.sqrt(1.5)
    index, coef = np.arange(18) % 12, (np.arange(18) < 15).astype(float)
    kernels = (
        Kernel.gather(index, coef * up, old=12),
        Kernel.gather(np.arange(9) % 6, down, old=6),
    )
    data, _ = world.run(Formula("w", (18, 9), dtype, (Term(stored, kernels),)), 5)
    as_bits = special.view(torch.uint8).reshape(12, 6, -1)
    expected = (
        as_bits[index][:, np.arange(9) % 6] * torch.tensor(coef, dtype=torch.uint8)[:, None, None]
    )
    assert data == expected.numpy().tobytes()


@dtypes
def test_scaled_and_moved_is_rounded_once(dtype):
    """A factor, then one rounding to nearest even, as torch rounds the float32 product."""
    world = World()
    stored = world.add(random(40, 30), dtype)
    kernel = Kernel.gather(np.arange(60) % 30, 1 / 3, old=30)
    found = world.values(Formula("w", (40, 60), dtype, (Term(stored, (None, kernel)),)))
    wide = torch.float64 if dtype == "F64" else torch.float32
    product = world.tensors[stored].to(wide) * torch.tensor(1 / 3, dtype=wide)
    expected = product.to(DTYPES[dtype]).to(torch.float64).numpy()
    np.testing.assert_array_equal(found, np.concatenate([expected, expected], 1))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_float64_is_not_rounded_twice(dtype):
    """Just above a tie of the 16-bit type, by less than float32 can tell, still rounds up."""
    world = World()
    digits = {"F16": 10, "BF16": 7}[dtype]
    tie = 1 + 2.0 ** -(digits + 1)
    values = np.array([tie, tie + 1e-12, tie - 1e-12, -tie - 1e-12, 1e-60, 0.0, 1.0])
    stored = world.add(values, "F64")
    found = world.values(Formula("w", (7,), dtype, (Term(stored, (None,)),)))
    up = 1 + 2.0**-digits
    np.testing.assert_array_equal(found, [1.0, up, 1.0, -up, 0.0, 0.0, 1.0])
    if dtype == "F16":  # numpy rounds float64 to float16 in one go
        values = random(5000) * 10.0 ** np.random.default_rng(1).uniform(-9, 4.5, 5000)
        stored = world.add(values, "F64")
        found = world.values(Formula("w", (5000,), dtype, (Term(stored, (None,)),)))
        np.testing.assert_array_equal(found, values.astype(np.float16).astype(np.float64))


def test_coefficients_that_are_one_on_paper_are_one():
    """Producers × c and consumers / c cancel to a copy, in float64 too."""
    world = World()
    stored = world.add(random(8, 8), "F64")
    c = math.sqrt(11 / 7)
    kernels = (Kernel.identity(8, c), Kernel.identity(8, 1 / c))
    data, _ = world.run(Formula("w", (8, 8), "F64", (Term(stored, kernels),)))
    assert data == world.tensors[stored].numpy().tobytes()


@pytest.mark.parametrize(
    ("dtype", "largest"), [("F16", 65504.0), ("BF16", 3.3895313892515355e38), ("F32", 3.4028234e38)]
)
@pytest.mark.parametrize("moved", [True, False])
def test_overflow_is_told_from_what_was_not_finite(dtype, largest, moved):
    """Finite numbers that the output's dtype cannot hold are counted on their own."""
    world = World()
    values = np.array([[1.0, largest], [largest * 1.2, np.nan], [np.inf, -largest * 1.2]])
    stored = world.add(values, "F64")
    kernel = Kernel.gather([0, 1, 2, 1], old=3)
    terms = (Term(stored, (kernel, None)), Term(Ones((1, 1)), (kernel, None), 0.0))
    source = Term(Ones((1, 1)), (Kernel.gather([0] * 4, 0.0, old=1), Kernel.gather([0, 0], old=1)))
    formula = Formula("w", (4, 2), dtype, (terms[0],) if moved else (terms[0], source))
    for rows in (1, 4):
        found = world.run(formula, rows)[1]
        assert sum(b.nonfinite for b in found) == 6
        assert sum(b.overflowed for b in found) == 3


def test_bad_numbers_stay_in_their_rows():
    """A NaN does not leak into rows that do not take it, not even as 0 · NaN."""
    world = World()
    stored = world.add([[np.nan, 1.0], [2.0, 3.0]], "F32")
    rows = Kernel.gather([[0, 0], [1, 1], [1, 1]], [[0, 0], [2, 0], [1, 0.5]], old=2)
    columns = Kernel.gather([[0, 0], [1, 1]], [[0, 0], [2, 1.5]], old=2)
    found = world.values(Formula("w", (3, 2), "F32", (Term(stored, (rows, columns)),)))
    np.testing.assert_allclose(found, [[0, 0], [0, 21.0], [0, 15.75]], rtol=1e-6)


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tile", "scaled", "several", "mean", "dense", "nothing"])
@pytest.mark.parametrize("shape", [(6,), (6, 4)])
def test_rows_times_a_stored_vector(kind, shape):
    """Rows are multiplied before the kernels act, whatever these are, in any blocks."""
    world, kernel = World(), growths(6, 9)[kind]
    weight, by = world.add(random(*shape)), world.add(random(6, seed=1))
    kernels = (kernel, *(None,) * (len(shape) - 1))
    formula = Formula("w", (9, *shape[1:]), "F32", (Term(replace(weight, by=by), kernels),))
    world.check(formula)
    world.check(formula, rows=2)
    plain = Formula("w", shape, "F32", (Term(replace(weight, by=by), (None,) * len(shape)),))
    world.check(plain)
    assert plain.copied is None


def test_only_needed_rows_are_read():
    """Each block reads the rows that its kernel names, neighbours in one go."""
    world = World()
    stored = world.add(random(100, 2000), "F32")
    tile = Kernel.gather(np.arange(150) % 100, old=100)
    formula = Formula("w", (150, 2000), "F32", (Term(stored, (tile, None), 0.5),))
    budget = working_bytes(formula, 60)
    assert block_rows(formula, budget) == 60
    list(evaluate(formula, world.rows, budget=budget))
    spans = [(a, b) for _, a, b in world.reads]
    assert spans == [(0, 60), (0, 20), (60, 100), (20, 50)]


def test_the_source_is_never_written_to():
    """The caller's buffer stays as it was, even where it is writable and needs no conversion."""
    world = World()
    values = random(4, 4).astype(np.float32)
    stored, kept = world.add(values), values.copy()
    terms = (Term(stored, (Kernel.identity(4, 2.0), None), 3.0), Term(stored, (None, None)))
    formula = Formula("w", (4, 4), "F32", terms)
    list(
        evaluate(
            formula, lambda s, a, b: values[a:b].reshape(-1).view(np.uint8).data, budget=PLENTY
        )
    )
    np.testing.assert_array_equal(values, kept)


MEMORY = """
import ctypes
import numpy as np
import torch
from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.checkpoints.types import Stored
from growkit.engine import evaluate as engine, working_memory
from growkit.planning.formula import Formula, Noise, Term

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))

def rows(stored, start, stop):
    return memoryview(bytearray((stop - start) * 2048 * 2))

stored = Stored("small", "w", (2048, 2048), "BF16")
tile = Kernel.gather(np.arange(4096) % 2048, old=2048)
mean = tile.plus(Kernel.shared(np.full(2048, 1 / 2048), np.arange(4096.0)))
null = AxisMap.of(tile, tile.scaled(0.5)).null_space(behind_norm=False)
grown = Term(stored, (tile, tile.scaled(0.5)))
noise = Term(Noise(0, 1, "w", (4096, 4096), std=1.0), (None, null))
dense = Kernel.from_matrix(np.ones((1024, 2048)))
working_memory.TARGET = 64 << 20
torch.set_num_threads(1)
shared, learned = Term(stored, (mean, mean)), Term(stored, (dense, tile))
small, wide = "BF16", "F64"
cases = [(small, grown), (small, grown), (small, grown, noise), (wide, shared), (small, learned)]
for dtype, *terms in cases:
    formula = Formula("w", (terms[0].kernels[0].new, 4096), dtype, tuple(terms))
    count = working_memory.block_rows(formula, 1 << 40)
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    for block in engine.evaluate(formula, rows, budget=1 << 40):
        del block
    print(status("VmHWM") - before, working_memory.working_bytes(formula, count))
"""


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak")
def test_the_memory_estimate_is_honest():
    """What the process really takes stays below the estimate, and is not far below it."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    if "PermissionError" in done.stderr:
        pytest.skip("the peak cannot be reset here")
    assert not done.returncode, done.stderr
    pairs = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(pairs) == 5
    for taken, estimate in pairs[1:]:  # the first one loads code
        assert estimate / 4 < taken <= estimate, pairs


# -- noise -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("snr_db", [-3.0, 10.0, 40.0])
def test_noise_lies_as_far_below_the_signal_as_asked(snr_db):
    """Mean square of the tensor over mean square of the projected noise, in decibels."""
    world = World()
    tile = Kernel.gather(np.arange(400) % 200, old=200)
    axis = AxisMap.of(tile, tile.scaled(0.5))
    null = axis.null_space(behind_norm=False)
    grown = Term(world.add(random(300, 200) * 0.02), (None, axis.read))
    spread = null.square_norm / null.new
    noisy = Noise(0, 1, "w", (300, 400), snr_db=snr_db, signal=(grown,), spread=spread)
    total = world.values(Formula("w", (300, 400), "F64", (grown, Term(noisy, (None, null)))))
    signal = world.values(Formula("w", (300, 400), "F64", (grown,)))
    measured = 10 * np.log10(np.mean(signal**2) / np.mean((total - signal) ** 2))
    assert abs(measured - snr_db) < 0.1
    np.testing.assert_allclose(
        total @ axis.write.matrix(), signal @ axis.write.matrix(), atol=1e-15
    )


def test_no_signal_no_noise():
    """Noise below a tensor of zeros is zero, and so is noise that nothing can be seen of."""
    world = World()
    zero = Term(world.add(np.zeros((4, 4))), (None, None))
    some = Term(world.add(random(4, 4)), (None, None))
    for signal, spread in (((zero,), 1.0), ((), 1.0), ((some,), 0.0)):
        noisy = Noise(0, 1, "w", (4, 4), snr_db=0.0, signal=signal, spread=spread)
        assert not world.values(Formula("w", (4, 4), "F32", (Term(noisy, (None, None)),))).any()


def test_noise_on_noise():
    """A second noise step takes the first one's result as its signal."""
    world = World()
    grown = Term(world.add(random(40, 40)), (None, None))
    first = Term(Noise(0, 1, "w", (40, 40), snr_db=3.0, signal=(grown,)), (None, None))
    second = Noise(0, 2, "w", (40, 40), snr_db=3.0, signal=(grown, first))
    formula = Formula("w", (40, 40), "F32", (grown, first, Term(second, (None, None))))
    world.check(formula)
    assert world.run(formula, 1)[0] == world.run(formula)[0]


@dtypes
@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_noise_comes_first_in_rows_of_one_number(shape, dtype):
    """The generator draws sixteen numbers at least; what a row leaves over is not in the way."""
    world = World()
    terms = [Term(Noise(0, step, "w", shape, std=0.02), (None,) * len(shape)) for step in (1, 2)]
    world.check(Formula("w", shape, dtype, tuple(terms)))


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("factor", [0.5, 0.5**0.5, 1 / 3, -0.7, 3e-6, 1e30])
def test_scaling_in_one_pass_rounds_once(dtype, factor):
    """Every value of 16 bits, scaled while it is moved: as in float32, rounded at the end."""
    stored = World().add(np.zeros(1 << 16), dtype, name="w")
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(DTYPES[dtype])
    kernel = Kernel.gather(np.arange(1 << 16), factor, old=1 << 16)
    formula = Formula("w", (1 << 16,), dtype, (Term(stored, (kernel,)),))

    def rows(_: Stored, start: int, stop: int) -> memoryview:
        return memoryview(bytearray(values[start:stop].view(torch.uint8).numpy()))

    (block,) = evaluate(formula, rows, budget=PLENTY)
    want = values.to(torch.float32).mul(factor).to(DTYPES[dtype])
    assert bytes(block.data) == want.view(torch.uint8).numpy().tobytes()
    assert block.nonfinite == int((~want.isfinite()).sum())
