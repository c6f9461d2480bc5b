"""FLOP and memory of a traced program, read off its jaxpr.

- `matmul_flops`: two a multiply-add of its convolutions and matrix products.
- `peak_bytes`: the most bytes that its intermediate arrays take at one time, by the
  order of the program and by what compilers do alike: they fuse elementwise operations
  with what reads them, and store what convolutions, matrix products and loops read.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

# Operations whose result is the same numbers in another form or, summed over devices,
# in the same place.
VIEWS = (
    *("reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim"),
    *("psum", "psum_invariant", "pvary", "copy", "copy_p", "optimization_barrier"),
)
# Operations that move numbers: stored, but fused with what they read.
MOVES = ("concatenate", "pad", "slice", "split", "dynamic_slice", "gather", "rev")
LOOPS = ("scan", "while", "cond")
# Operations that can look elementwise by their shapes, and are not.
OPAQUE = (
    *LOOPS,
    *("dot_general", "conv_general_dilated", "fft", "sort"),
    *("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"),
)
SLACK = 1.1  # an elementwise result is computed anew from this many times its bytes


def num_bytes(tree) -> int:
    """Bytes of all arrays of a tree, given as arrays or as shapes and types."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _inner(params: dict) -> Iterator[Jaxpr]:
    """The programs within a program's equation."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


@functools.lru_cache
def _taps(
    size: int, out: int, taps: int, stride: int, low: int, spread: int, dilation: int
) -> int:
    """Pairs of an output's place and a kernel's tap that meet an input, on one axis.

    Of the inputs, `size` with `spread` - 1 zeros between them, the first stands at
    `low`: what meets zeros is no work.
    """
    place = np.arange(out)[:, None] * stride + np.arange(taps) * dilation - low
    inside = (place >= 0) & (place < size * spread) & (place % spread == 0)
    return int(inside.sum())


def _conv_flops(eqn: JaxprEqn) -> int:
    lhs, rhs, out = (var.aval.shape for var in (*eqn.invars, *eqn.outvars))
    params = eqn.params
    dims = params["dimension_numbers"]
    pairs = math.prod(
        map(
            _taps,
            (lhs[i] for i in dims.lhs_spec[2:]),
            (out[i] for i in dims.out_spec[2:]),
            (rhs[i] for i in dims.rhs_spec[2:]),
            params["window_strides"],
            (low for low, _ in params["padding"]),
            params["lhs_dilation"],
            params["rhs_dilation"],
        )
    )
    batch, channels = (out[i] for i in dims.out_spec[:2])
    return 2 * batch * channels * rhs[dims.rhs_spec[1]] * pairs


def _dot_flops(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted)


def _total(jaxpr: Jaxpr, amounts: dict[str, Callable[[JaxprEqn], int]]) -> int:
    """A program's sum of amounts, by the names of operations.

    Bodies of scans count as often as they run, the dearest branch of a `cond` once, and
    bodies of while loops, whose number of rounds is not known, once.
    """
    total = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name in amounts:
            total += amounts[name](eqn)
            continue
        inner = [_total(part, amounts) for part in _inner(eqn.params)]
        each = max(inner, default=0) if name == "cond" else sum(inner)
        total += each * (eqn.params["length"] if name == "scan" else 1)
    return total


def matmul_flops(jaxpr: Jaxpr) -> int:
    """FLOP of a program's matrix products and convolutions, two a multiply-add.

    What a convolution multiplies by its padding is left out, as XLA does; loops and
    branches count as often as they run, as far as that is known.
    """
    amounts = {"dot_general": _dot_flops, "conv_general_dilated": _conv_flops}
    return _total(jaxpr, amounts)


def reduced_bytes(jaxpr: Jaxpr) -> int:
    """Bytes of what a program sums over devices."""

    def size(eqn):
        return sum(map(_size, eqn.outvars))

    return _total(jaxpr, dict.fromkeys(("psum", "psum_invariant"), size))


def result_bytes(jaxpr: Jaxpr, recomputes: bool) -> int:
    """Bytes that a program's convolutions and matrix products put out, in all.

    Args:
      jaxpr: the program, a forward pass.
      recomputes: whether the backward pass computes again what is asked for by
        `jax.checkpoint`: of such a part only the result is counted then.
    """

    def size(eqn):
        return sum(map(_size, eqn.outvars))

    names = ["dot_general", "conv_general_dilated"]
    names += ["checkpoint", "remat2"] if recomputes else []
    return _total(jaxpr, dict.fromkeys(names, size))


@dataclasses.dataclass(eq=False)
class _Array:
    """An intermediate array.

    Attributes:
      bytes: its size.
      stored: the arrays in memory that it is computed from where it is read: itself,
        or those that it shows, or that the fused operation reads.
      last: the number of the last line that reads it.
    """

    bytes: int
    stored: frozenset["_Array"] = frozenset()
    last: int = -1


@dataclasses.dataclass(frozen=True)
class _Line:
    """An equation, of the program or of a function that it calls.

    Attributes:
      eqn: the equation.
      inputs: the intermediate arrays that it reads; None for a number or an input of
        the program.
      outputs: the arrays that it computes.
    """

    eqn: JaxprEqn
    inputs: list[_Array | None]
    outputs: list[_Array]

    @functools.cached_property
    def kind(self) -> str:
        """How it treats memory: "view", "elementwise", "fused", or "opaque"."""
        name, (out, *more) = self.eqn.primitive.name, self.eqn.outvars
        if name in VIEWS:
            return "view"
        if name in MOVES or name.startswith(("reduce_", "arg")):
            return "fused"
        shapes = [var.aval.shape for var in self.eqn.invars if var.aval.size > 1]
        if more or name in OPAQUE or not _fit(shapes, out.aval.shape):
            return "opaque"
        return "elementwise"


def _fit(shapes: list[tuple[int, ...]], out: tuple[int, ...]) -> bool:
    """Whether shapes are that of a result, or broadcast to it along their axes of 1."""
    return all(
        len(shape) == len(out) and all(a in (1, b) for a, b in zip(shape, out))
        for shape in shapes
    )


def _lines(
    jaxpr: Jaxpr, inputs: list[_Array | None], lines: list[_Line]
) -> list[_Array | None]:
    """Appends a program's lines, calls replaced by what they call; its outputs."""
    arrays = dict(zip(jaxpr.invars, inputs))

    def read(variables):
        return [None if isinstance(v, Literal) else arrays.get(v) for v in variables]

    for eqn in jaxpr.eqns:
        inner = list(_inner(eqn.params))
        if len(inner) == 1 and eqn.primitive.name not in LOOPS:
            outputs = _lines(inner[0], read(eqn.invars), lines)
        else:
            outputs = [_Array(_size(var)) for var in eqn.outvars]
            lines.append(_Line(eqn, read(eqn.invars), outputs))
        arrays |= zip(eqn.outvars, outputs)
    return read(jaxpr.outvars)


def _size(var) -> int:
    return var.aval.size * var.aval.dtype.itemsize


def peak_bytes(jaxpr: Jaxpr) -> int:
    """The most bytes that a program's intermediate arrays take at one time.

    Its inputs and constants are not counted, nor what is elementwise of them and no
    loop, convolution or matrix product reads, such as a donated state's new values. A
    loop counts as its body once, a `cond` as its dearest branch.
    """
    lines: list[_Line] = []
    outputs = _lines(jaxpr, [None] * len(jaxpr.invars), lines)
    _store(lines)
    for number, line in enumerate(lines):
        for array in _read(line.inputs):
            array.last = number
    for array in _read(outputs):
        array.last = len(lines)
    return _peak(lines)


def _read(arrays: list[_Array | None]) -> frozenset[_Array]:
    """The arrays in memory that some arrays are computed from."""
    return frozenset().union(*(a.stored for a in arrays if a is not None))


def _store(lines: list[_Line]) -> None:
    """Decides which arrays are stored."""
    needed, shown = set(), {}
    for line in lines:
        if line.kind == "view":
            shown |= zip(line.outputs, line.inputs)
    for line in lines:
        for array in line.inputs if line.kind == "opaque" else []:
            while array in shown:
                array = shown[array]
            needed.add(array)
    for line in lines:
        for i, array in enumerate(line.outputs):
            of = _read(line.inputs[i : i + 1] if line.kind == "view" else line.inputs)
            enough = sum(a.bytes for a in of) <= SLACK * array.bytes
            fused = line.kind == "elementwise" and array not in needed and enough
            array.stored = of if line.kind == "view" or fused else frozenset([array])


def _peak(lines: list[_Line]) -> int:
    """The largest sum of stored arrays that are still to be read."""
    now = peak = 0
    for number, line in enumerate(lines):
        new = sum(a.bytes for a in line.outputs if a in a.stored)
        unread = sum(a.bytes for a in line.outputs if a in a.stored and a.last < 0)
        ends = {a for a in _read(line.inputs) if a.last == number}
        # What is read for the last time can be written over, by a loop what it carries.
        over = set()
        if line.kind == "elementwise":
            over = ends
        elif line.eqn.primitive.name == "scan":
            first = line.eqn.params["num_consts"]
            carried = line.inputs[first : first + line.eqn.params["num_carry"]]
            over = ends & _read(carried)
        now += new - sum(a.bytes for a in over)
        inside = max(map(peak_bytes, _inner(line.eqn.params)), default=0)
        if line.eqn.primitive.name == "cond":  # a branch's results are the cond's
            inside = max(inside - new, 0)
        peak = max(peak, now + inside)
        now -= unread + sum(a.bytes for a in ends - over)
    return peak
