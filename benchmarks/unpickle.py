"""Other people's pickles, read without running anything.

A pickle is a program. Here it may build numbers, texts, containers and numpy arrays of numbers, and
nothing else: its instructions are listed first (`pickletools.genops` runs none of them) and refused
unless all are on the list; then the few names that it may look up lead to stand-ins of this module,
which only remember what they were given; arrays are made from that after all of it was checked.
Neither numpy's own constructors nor any other function is reachable.

Weighed and rejected: `pickle.Unpickler` with numpy's names let through, the usual advice. numpy's
`dtype.__setstate__` and `_reconstruct` trust what they get, and `LONG_BINPUT` alone makes the
unpickler reserve 32 GB.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from typing import Any, NoReturn

import numpy as np

from workbench.core.errors import BadInput

MAX_BYTES = 64 * 1024 * 1024
MAX_OPS = 10_000  # a DragBench file has about 100; nesting of tuples is bounded by this, too
MAX_ITEMS = 64_000_000  # of an array

_OPS = frozenset((
    # plain values
    *["PROTO", "FRAME", "STOP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2",
     "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING",
     "UNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
     "BINBYTES8", "BYTEARRAY8"],
    # containers
    *["MARK", "POP", "POP_MARK", "DUP", "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE",
       "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS",
       "EMPTY_SET", "ADDITEMS", "FROZENSET"],
    # things seen before, names, and what is done with them
    *["GET", "BINGET", "LONG_BINGET", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GLOBAL",
       "STACK_GLOBAL", "REDUCE", "BUILD"],
))  # fmt: skip
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_NUMBER = re.compile(r"[<>|=]?[biufc](?:1|2|4|8|16)")
_ERRORS = (
    pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError,
    MemoryError, RecursionError, TypeError, ValueError, AssertionError,
)  # fmt: skip


class _Refused(Exception):
    """The forbidden thing a pickle asks for, as the end of a sentence."""


class _StandIn:
    """Something that a pickle may name; it can neither be changed nor asked for anything."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise _Refused("changes a function")

    def __hash__(self) -> int:
        raise _Refused("uses an array as a key")


class _Dtype(_StandIn):
    """A kind of number: letter, width and byte order."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        """numpy's state of a plain number: version, byte order, and nothing of fields or sizes."""
        if not isinstance(state, tuple) or len(state) != 8 or state[1] not in ("<", ">", "|", "="):
            raise _Refused("describes a kind of number that is none")
        if state[2:5] != (None, None, None):
            raise _Refused("describes an array of records")
        self.name = state[1] + self.name.lstrip("<>|=")


class _Array(_StandIn):
    """An array before it is one."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self) -> None:
        self.shape: Any = None

    def __setstate__(self, state: Any) -> None:
        """numpy's state: version, shape, dtype, Fortran order, bytes."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("describes an array that is none")
        _, self.shape, self.dtype, self.fortran, self.raw = state

    def array(self) -> np.ndarray[Any, Any]:
        """The array, after all that describes it was checked."""
        shape, dtype = self.shape, getattr(self, "dtype", None)
        if (
            not isinstance(shape, tuple)
            or len(shape) > 4
            or not all(type(n) is int and 0 <= n <= MAX_ITEMS for n in shape)
            or math.prod(shape) > MAX_ITEMS
        ):
            raise _Refused("describes an array of an impossible shape")
        if not isinstance(dtype, _Dtype):
            raise _Refused("describes an array of something other than numbers")
        raw = self.raw.encode("latin1") if isinstance(self.raw, str) else self.raw
        kind = np.dtype(dtype.name)
        if not isinstance(raw, (bytes, bytearray)) or len(raw) != math.prod(shape) * kind.itemsize:
            raise _Refused("describes an array whose bytes do not fit its shape")
        return np.frombuffer(raw, kind).reshape(shape, order="F" if self.fortran else "C")


class _ArrayType(_StandIn):
    """`numpy.ndarray`, as a name."""

    __slots__ = ()


class _MakeDtype(_StandIn):
    """`numpy.dtype`."""

    __slots__ = ()

    def __call__(self, name: Any, *_flags: Any) -> _Dtype:
        if not isinstance(name, str) or not _NUMBER.fullmatch(name):
            raise _Refused(f"has an array of {name if isinstance(name, str) else 'objects'!r:.20}")
        return _Dtype(name)


class _Reconstruct(_StandIn):
    """`numpy.core.multiarray._reconstruct`: an empty array, filled by what follows."""

    __slots__ = ()

    def __call__(self, kind: Any, *_more: Any) -> _Array:
        if not isinstance(kind, _ArrayType):
            raise _Refused("makes an array of an unknown kind")
        return _Array()


class _FromBuffer(_StandIn):
    """`numpy.core.numeric._frombuffer`, of pickle's protocol 5."""

    __slots__ = ()

    def __call__(self, raw: Any, dtype: Any, shape: Any, order: Any = "C") -> _Array:
        made = _Array()
        made.__setstate__((1, shape, dtype, order == "F", raw))
        return made


class _Scalar(_StandIn):
    """`numpy.core.multiarray.scalar`: one number."""

    __slots__ = ()

    def __call__(self, dtype: Any, raw: Any) -> Any:
        made = _Array()
        made.__setstate__((1, (), dtype, False, raw))
        return made.array().item()


class _Encode(_StandIn):
    """`_codecs.encode`: how protocols 0 to 2 write bytes."""

    __slots__ = ()

    def __call__(self, text: Any, codec: Any = "") -> bytes:
        if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
            raise _Refused("asks for a codec")
        return text.encode("latin1")


_NAMES: dict[tuple[str, str], _StandIn] = {
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
}
for _core in ("core", "_core"):  # numpy 1 and 2
    _NAMES[f"numpy.{_core}.multiarray", "_reconstruct"] = _Reconstruct()
    _NAMES[f"numpy.{_core}.multiarray", "scalar"] = _Scalar()
    _NAMES[f"numpy.{_core}.numeric", "_frombuffer"] = _FromBuffer()


class _Unpickler(pickle.Unpickler):
    """Looks names up in `_NAMES` only."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _Refused(f"asks for {f'{module}.{name}':.60}") from None

    def persistent_load(self, _pid: Any) -> NoReturn:
        raise _Refused("refers to another file")


def read_pickle(raw: bytes, name: str) -> Any:
    """Numbers, texts, containers and arrays of a pickle; nothing in it is executed.

    Raises:
        BadInput: for a pickle that is damaged, too large, or asks for anything else.
    """
    if len(raw) > MAX_BYTES:
        raise BadInput(
            f"{name} has {len(raw) / 2**20:.0f} MB; a pickle of points and a mask may have "
            f"{MAX_BYTES >> 20} MB."
        )
    try:
        _check(raw)
        return _arrays(_Unpickler(io.BytesIO(raw)).load(), [MAX_OPS])
    except _Refused as exc:
        raise BadInput(
            f"{name} is refused: this pickle {exc}, and only numbers, texts, containers and arrays "
            "of numbers are read.",
            code="refused-pickle",
        ) from exc
    except _ERRORS as exc:
        raise BadInput(
            f"{name} is damaged or no pickle ({type(exc).__name__}).", code="damaged"
        ) from exc


def _check(raw: bytes) -> None:
    """See that a pickle has known instructions only, not too many, and no wild memo."""
    for count, (op, arg, _) in enumerate(pickletools.genops(raw), 1):
        if op.name not in _OPS:
            raise _Refused(f"has the instruction {op.name}")
        if count > MAX_OPS:
            raise _Refused(f"has more than {MAX_OPS} instructions")
        if op.name in _PUTS and not 0 <= int(arg or 0) <= MAX_OPS:
            raise _Refused(f"numbers a memo {arg}")


def _arrays(found: Any, left: list[int]) -> Any:
    """The same with arrays in place of the stand-ins; `left` bounds the work on shared parts."""
    left[0] -= 1
    if left[0] < 0:
        raise _Refused(f"holds more than {MAX_OPS} things")
    if isinstance(found, _Array):
        return found.array()
    if isinstance(found, _StandIn):
        raise _Refused("holds a function")
    if isinstance(found, dict):
        return {k: _arrays(v, left) for k, v in found.items()}
    if isinstance(found, (list, tuple)):
        return [_arrays(v, left) for v in found]
    return found
