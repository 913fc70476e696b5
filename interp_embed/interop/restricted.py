"""A reader of pickles that runs none of the code they name.

Owns the allow-list and the stand-ins. A pickle is a program: it imports names, calls them and sets
attributes on what they return. Here every name it may import resolves to a stand-in of this
module, which only notes what it was called with (`Record`) or is a small constructor of a plain
value that checks its arguments (`Constructor`). No function of numpy, scipy or pandas that was
written to rebuild their internals runs on a file's say-so, which matters: with numpy's own ``dtype`` a
pickle can forge one that reads bytes as pointers, and any real class can have its methods replaced.
What was noted is turned into arrays and matrices by `plain` here, and into frames by
`interp_embed.interop.pickled_frames`.

This says nothing about memory: a hostile file can still ask for a very large list.
"""

from __future__ import annotations

import datetime as dt
import decimal
import math
import pickle
import re
from collections import OrderedDict
from typing import IO, TYPE_CHECKING, Any, NoReturn, cast
from zoneinfo import ZoneInfo

import numpy as np
from scipy.sparse import csr_matrix

from interp_embed.errors import UnsafePickleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["Constructor", "Record", "RestrictedUnpickler", "plain", "resolve_array"]


class _Sealed(type):
    """A class of which a pickle can change no attribute."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise UnsafePickleError(
            f"the pickle tries to change {cls.__name__}.{name}; refusing to read it"
        )


class Record(metaclass=_Sealed):
    """What a pickle said about one object of a class or function that was not imported.

    Attributes
    ----------
    args, kwargs
        What it would have been called with.
    state
        What it would have been given to restore itself from; None if nothing.
    """

    __slots__ = ("args", "kwargs", "state")

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Any

    def __new__(cls, *args: object, **kwargs: object) -> Record:
        """Note the arguments; call nothing."""
        self = object.__new__(cls)
        self.args, self.kwargs, self.state = args, kwargs, None
        return self

    def __setstate__(self, state: object) -> None:
        self.state = state


class Constructor:
    """A function that a pickle may call; its attributes cannot be set by one."""

    __slots__ = ("_function", "_name")

    _function: Callable[..., Any]
    _name: str

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call the function, which checks its arguments."""
        return self._function(*args, **kwargs)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise UnsafePickleError(f"the pickle tries to change {self._name}; refusing to read it")

    def __setstate__(self, state: object) -> NoReturn:
        raise UnsafePickleError(f"the pickle tries to change {self._name}; refusing to read it")


def _refuse(what: str) -> NoReturn:
    raise UnsafePickleError(
        f"the pickle asks for {what}. Only numpy arrays, scipy csr matrices, pandas frames and "
        "plain Python values are read. If you trust the file, load it where it was written, "
        "convert the values concerned (to text, numbers, lists or dates) and save it again."
    )


# --- numpy ---------------------------------------------------------------------------------------


class DType(Record):
    """A ``numpy.dtype`` as a pickle describes it."""

    __slots__ = ()

    def resolve(self) -> np.dtype[Any]:
        """Return the dtype, from its code and byte order alone.

        The rest of a pickled dtype (field layouts, item sizes, flags) is what numpy trusts and
        what a forged file would lie about, so none of it is used but the unit of a datetime.
        """
        code = self.args[0] if self.args else None
        if not (isinstance(code, str) and _DTYPE.fullmatch(code)):
            _refuse(f"a numpy dtype {code!r}")
        state = self.state if isinstance(self.state, tuple) else ()
        order = state[1] if len(state) > 1 and state[1] in ("<", ">") else None
        if code[-2:] in ("M8", "m8") and len(state) > 8:
            code = f"{code}[{_datetime_unit(state[8])}]"
        dtype = np.dtype(code)
        return dtype.newbyteorder(order) if order else dtype


_DTYPE = re.compile(
    r"[<>=|]?([?bBhHiIlLqQefdgFDGO]|b1|[iu][1248]|f[248]|f16|c8|c16|O[48]|[SUa]\d+|[mM]8)"
)
_UNITS = frozenset({"Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns"})


def _datetime_unit(metadata: object) -> str:
    """Return "ns" from ``({}, (b"ns", 1, 1, 1))``."""
    if isinstance(metadata, tuple) and len(metadata) == 2 and isinstance(metadata[1], tuple):
        unit = metadata[1][0]
        name = unit.decode("ascii", "replace") if isinstance(unit, bytes) else unit
        if name in _UNITS and metadata[1][1:] in ((1, 1), (1, 1, 1)):
            return str(name)
    _refuse(f"a numpy datetime dtype with {metadata!r}")


class Array(np.ndarray[Any, np.dtype[Any]], metaclass=_Sealed):
    """A numpy array under construction; `plain` turns it into an ordinary one."""

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> Array:
        """Refuse: arrays come from the two functions that numpy pickles them with."""
        _refuse("numpy.ndarray called directly")

    def __setstate__(self, state: Any) -> None:
        """Take over shape, dtype and content, once, if they fit together.

        numpy trusts what it is given here: a list that is too short for the shape makes it crash, and
        a second state frees memory that views of the first still use.
        """
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            _refuse("an array with a state that numpy does not write")
        if self.base is not None or self.shape != (0,):
            _refuse("an array with two states")
        shape, described, fortran, content = state[-4:]
        if not isinstance(described, DType):
            _refuse("an array with a state that numpy does not write")
        dtype = described.resolve()
        if not isinstance(content, list if dtype.hasobject else (bytes, bytearray)):
            _refuse(f"an array of {dtype} made of {type(content).__name__}")
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            _refuse(f"an array of shape {shape!r:.60}")
        unit = 1 if dtype.hasobject else dtype.itemsize
        if len(content) != math.prod(shape) * unit:
            _refuse(
                f"an array of shape {shape} and {dtype} made of {len(content)} elements or bytes"
            )
        state = (1, shape, dtype, bool(fortran), content)
        super().__setstate__(cast("Any", state))


def _array_reconstruct(subtype: object, *ignored: object) -> Array:
    if subtype is not Array:
        _refuse("an array of another class than numpy.ndarray")
    return np.ndarray.__new__(Array, (0,), "b")


def _array_frombuffer(
    buffer: object, dtype: object, shape: Any, order: object, axis_order: Any = None
) -> Array:
    if not isinstance(buffer, (bytes, bytearray)) or not isinstance(dtype, DType):
        _refuse("an array with a buffer that numpy does not write")
    flat: NDArray[Any] = np.frombuffer(buffer, dtype.resolve())  # which refuses object arrays
    if order == "K" and axis_order is not None:
        array = flat.reshape(shape).transpose(axis_order)
    else:
        array = flat.reshape(shape, order="F" if order == "F" else "C")
    return array.view(Array)


def _array_scalar(dtype: object, content: object = b"") -> object:
    if not isinstance(dtype, DType):
        _refuse("a numpy scalar without a dtype")
    resolved = dtype.resolve()
    if resolved.hasobject or not isinstance(content, bytes):
        _refuse(f"a numpy scalar of dtype {resolved} made of {type(content).__name__}")
    if resolved.itemsize == 0:
        return np.zeros((), resolved)[()]
    return np.frombuffer(content, resolved, count=1)[0]


def resolve_array(value: object, what: str) -> NDArray[Any]:
    """Return the array that a pickle holds at ``value``; ValueError naming ``what`` if none."""
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{what} is {type(value).__name__} in this pickle, expected a numpy array")
    return value.view(np.ndarray)


class CSRMatrix(Record):
    """A ``scipy.sparse.csr_matrix`` as a pickle describes it."""

    __slots__ = ()

    def resolve(self) -> csr_matrix:
        """Return the matrix, every index checked; float16, which scipy cannot use, as float32."""
        state = self.state if isinstance(self.state, dict) else {}
        parts = [
            resolve_array(state.get(k), f"csr_matrix.{k}") for k in ("data", "indices", "indptr")
        ]
        shape = state.get("_shape", state.get("shape"))
        if any(p.ndim != 1 for p in parts) or any(p.dtype.kind not in "iu" for p in parts[1:]):
            raise ValueError("a csr_matrix in this pickle has indices that are not 1-D integers")
        data = parts[0]
        if data.dtype.kind not in "biuf":
            raise ValueError(f"a csr_matrix in this pickle holds {data.dtype}, expected numbers")
        if data.dtype.kind == "f" and data.dtype.itemsize < 4:
            data = data.astype(np.float32)
        if not (isinstance(shape, tuple) and len(shape) == 2):
            raise ValueError(
                f"a csr_matrix in this pickle has shape {shape!r}, expected two numbers"
            )
        matrix = csr_matrix((data, parts[1], parts[2]), shape=(int(shape[0]), int(shape[1])))
        matrix.check_format(full_check=True)
        return matrix


# --- plain values --------------------------------------------------------------------------------


def _encode(text: object, encoding: object = "") -> bytes:
    """Stand for ``codecs.encode``, which pickles older than protocol 3 make bytes with."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        _refuse(f"_codecs.encode with encoding {encoding!r}")
    return text.encode("latin-1")


def _bytes(*args: object) -> bytes:
    if args:
        _refuse("builtins.bytes with arguments")
    return b""


def _bytearray(content: object = b"", encoding: object = "latin-1") -> bytearray:
    if isinstance(content, str) and encoding in ("latin1", "latin-1"):
        return bytearray(content.encode("latin-1"))
    if not isinstance(content, bytes):
        _refuse(f"builtins.bytearray of {type(content).__name__}")
    return bytearray(content)


def _zone(key: object, *ignored: object) -> ZoneInfo:
    if not isinstance(key, str):
        _refuse("a time zone without a name")
    return ZoneInfo(key)


def _utc(*ignored: object) -> dt.timezone:
    return dt.UTC


def _sae_type(value: object) -> str:
    """Stand for the original library's enumeration of SAE back ends."""
    if not isinstance(value, str):
        _refuse(f"an SAEType of {type(value).__name__}")
    return value


def _alias(name: object) -> str:
    """Stand for ``pyarrow.lib.type_for_alias``; the name is all that is needed."""
    if not isinstance(name, str):
        _refuse("an Arrow type without a name")
    return name


def _buffer(content: object) -> object:
    """Stand for ``pyarrow.lib.py_buffer``."""
    if not isinstance(content, (bytes, bytearray)):
        _refuse("an Arrow buffer that is not bytes")
    return content


class Zone(Record):
    """``zoneinfo.ZoneInfo``, which pickles its zones by way of ``getattr``."""

    __slots__ = ()


def _getattr(*args: object) -> Constructor:
    """Stand for ``getattr`` in the one use of it that dates with a time zone make."""
    if len(args) != 2 or args[0] is not Zone or args[1] != "_unpickle":
        _refuse("builtins.getattr")
    return Constructor("zoneinfo.ZoneInfo._unpickle", _zone)


_RECONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "multiarray._reconstruct": _array_reconstruct,
    "multiarray.scalar": _array_scalar,
    "numeric._frombuffer": _array_frombuffer,
}
_VALUES: dict[tuple[str, str], Callable[..., Any]] = {
    ("builtins", "bytes"): _bytes,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "complex"): complex,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "slice"): slice,
    ("builtins", "range"): range,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("datetime", "date"): dt.date,
    ("datetime", "datetime"): dt.datetime,
    ("datetime", "time"): dt.time,
    ("datetime", "timedelta"): dt.timedelta,
    ("decimal", "Decimal"): decimal.Decimal,
    ("interp_embed.sae.base_sae", "SAEType"): _sae_type,
    ("pyarrow.lib", "type_for_alias"): _alias,
    ("pyarrow.lib", "py_buffer"): _buffer,
    ("builtins", "getattr"): _getattr,
    ("zoneinfo", "ZoneInfo._unpickle"): _zone,
    ("pytz", "_p"): _zone,
    ("pytz", "_UTC"): _utc,
    ("datetime", "timezone"): dt.timezone,
    **{
        (f"numpy.{core}.{name.partition('.')[0]}", name.partition(".")[2]): function
        for name, function in _RECONSTRUCTORS.items()
        for core in ("core", "_core")
    },
}
_CLASSES: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): DType,
    ("scipy.sparse", "csr_matrix"): CSRMatrix,
    ("scipy.sparse.csr", "csr_matrix"): CSRMatrix,
    ("scipy.sparse._csr", "csr_matrix"): CSRMatrix,
    ("zoneinfo", "ZoneInfo"): Zone,
}
# Names of Python 2, which pickles of protocol 2 still use.
_OLD_NAMES = {("__builtin__", "xrange"): ("builtins", "range")}


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler of which every import resolves to a stand-in, or is refused.

    Parameters
    ----------
    file
        The pickle.
    records
        More names, with the `Record` class that stands for each.
    record_modules
        The top package of each module whose names may be looked up in ``records``. Their path
        below it is not compared, because it changes from release to release.
    """

    def __init__(
        self, file: IO[bytes], records: Mapping[str, type[Record]], record_modules: frozenset[str]
    ) -> None:
        super().__init__(file)
        self._records = records
        self._record_modules = record_modules

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for ``module.name``; import nothing.

        Raises
        ------
        UnsafePickleError
            The name is not one that arrays, frames and plain values need.
        """
        module, name = _OLD_NAMES.get((module, name), (module, name))
        module = "builtins" if module == "__builtin__" else module
        if (module, name) in _VALUES:
            return Constructor(f"{module}.{name}", _VALUES[module, name])
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        if name in self._records and module.partition(".")[0] in self._record_modules:
            return self._records[name]
        return _refuse(f"{module}.{name}")


_LEAVES = frozenset(
    {
        type(None), bool, int, float, complex, str, bytes, bytearray, slice, range,
        dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone,
        ZoneInfo, decimal.Decimal,
    }
)  # fmt: skip


def plain(value: Any, resolve: Callable[[Record], Any] | None = None) -> Any:
    """Return ``value`` with every stand-in in it, however deep, replaced by what it stands for.

    Parameters
    ----------
    value
        Something that a `RestrictedUnpickler` made. Containers that hold stand-ins are copied.
    resolve
        What turns a `Record` that this module does not know into a value.

    Raises
    ------
    UnsafePickleError
        If something is left that is not a plain value, such as a function passed as one.
    """
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is list and _LEAVES.issuperset(map(type, value)):
        return value  # the token strings of a document, and there are many
    if kind in (list, tuple, set, frozenset):
        return kind(plain(v, resolve) for v in value)
    if kind in (dict, OrderedDict):
        return kind((plain(k, resolve), plain(v, resolve)) for k, v in value.items())
    if isinstance(value, np.ndarray):
        array = value.view(np.ndarray)
        if array.dtype.hasobject:
            flat = np.empty(array.size, object)
            flat[:] = [plain(v, resolve) for v in array.ravel()] if array.size else []
            return flat.reshape(array.shape)
        return array
    if isinstance(value, np.generic):
        return value
    if isinstance(value, CSRMatrix):
        return value.resolve()
    if isinstance(value, Record) and resolve is not None:
        return resolve(value)
    return _refuse(f"a {kind.__name__} where a plain value belongs")
