"""Pickles and torch's files, interpreted without executing anything that they hold.

Python's own unpickler builds whatever a file names. Here each of a fixed list of names stands for
code below, dtypes come by name, and arrays and tensors are cut out of the file's bytes after shape
and size were checked. Everything else is refused.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_torch_or_pickle(path: Path) -> Any:
    """Returns what torch or pickle wrote: plain values, and tensors, also for arrays.

    Raises:
        Refused: the file holds something else, which could execute code.
        Exception: of any kind, for bytes that are none of these.
    """
    with path.open("rb") as file:
        start = file.read(len(_LEGACY))
    if start.startswith(b"PK\x03\x04"):
        return _read_archive(path)
    content = io.BytesIO(path.read_bytes())
    return _read_legacy(content) if start == _LEGACY else _Unpickler(content).load()


class Refused(Exception):
    """Carries what a pickle asked for and does not get."""


class _Damaged(Exception):
    """Something in a file does not fit the rest of it."""


# NumPy's names of numbers, without byte order.
_ARRAY_TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_STORAGE_TYPES = {
    f"torch.{name}Storage": dtype
    for name, dtype in (
        *(("Half", torch.float16), ("BFloat16", torch.bfloat16), ("Float", torch.float32)),
        *(("Double", torch.float64), ("Char", torch.int8), ("Short", torch.int16)),
        *(("Int", torch.int32), ("Long", torch.int64), ("Byte", torch.uint8), ("Bool", torch.bool)),
    )
}


@dataclass
class _Dtype:
    code: str
    order: str = "<"

    def set_state(self, state: Any) -> None:
        # Version 3, no subarray, names or fields, and the default size, alignment and flags.
        version, order, *rest = state
        if (version, *rest) != (3, None, None, None, -1, -1, 0) or order not in "<>=|":
            raise Refused("a numpy dtype with a state of its own")
        self.order = ">" if order == ">" else "<"

    def tensor(self, data: Any, shape: Any, fortran: Any = False) -> Tensor:
        if isinstance(data, str):  # of Python 2
            data = data.encode("latin1")
        sizes = _sizes(shape)
        if not isinstance(data, bytes | bytearray):
            raise Refused("a numpy array without bytes")
        if math.prod(sizes) * int(self.code[1:]) != len(data):
            raise _Damaged
        stored = "u1" if self.code == "b1" else self.code  # a boolean byte may be 2
        native = np.frombuffer(data, self.order + stored).astype(stored)
        array = native.reshape(sizes, order="F" if fortran else "C")
        return torch.from_numpy(array != 0 if self.code == "b1" else array)


class _Array:
    """What stands for an array until its content is known."""


def _dtype(value: Any) -> _Dtype:
    if not isinstance(value, _Dtype):
        raise Refused("an array of no plain dtype")
    return value


def _make_dtype(code: Any, *_: Any) -> _Dtype:
    if code not in _ARRAY_TYPES:
        raise Refused(f"a numpy dtype {str(code)[:20]!r}")
    return _Dtype(code)


@dataclass
class _Storage:
    """The numbers of one or several tensors."""

    numbers: Tensor


def _make_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    sizes, strides, (start,) = _sizes(size), _sizes(stride), _sizes((offset,))
    if not isinstance(storage, _Storage) or len(sizes) != len(strides):
        raise _Damaged
    end = start + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + 1
    if (end if all(sizes) else start) > storage.numbers.numel():
        raise _Damaged
    return storage.numbers.as_strided(sizes, strides, start)


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or not all(type(n) is int and n >= 0 for n in value):
        raise _Damaged
    return tuple(value)


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"_codecs.encode with {encoding}")
    return text.encode("latin1")


def _beside(*_: Any) -> Callable[..., Any]:
    """Stands for what training scripts keep beside weights, and nobody reads."""
    return _beside


# What stands for each name that a pickle may hold; nothing else that it can make is callable.
_NAMES: dict[str, Any] = {
    "numpy.ndarray": _beside,
    "numpy.dtype": _make_dtype,
    "numpy.core.multiarray._reconstruct": lambda *_: _Array(),
    "numpy.core.multiarray.scalar": lambda dtype, data: _dtype(dtype).tensor(data, ()).item(),
    "numpy.core.numeric._frombuffer": lambda data, dtype, shape, order: _dtype(dtype).tensor(
        data, shape, order == "F"
    ),
    "collections.OrderedDict": collections.OrderedDict,
    "_codecs.encode": _encode,
    "torch._utils._rebuild_tensor_v2": _make_tensor,
    "torch._utils._rebuild_tensor": _make_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": lambda function, _, args, __: function(*args),
    "torch.storage._load_from_bytes": lambda data: _read_legacy(io.BytesIO(data)),
    **_STORAGE_TYPES,
    **dict.fromkeys(map(str, _STORAGE_TYPES.values()), _beside),
    **dict.fromkeys(("torch.nn.parameter.Parameter", "torch.device", "torch.Size"), _beside),
    **dict.fromkeys(("builtins.bytearray", "builtins.complex", "builtins.set"), _beside),
    **dict.fromkeys(("collections.Counter", "argparse.Namespace"), _beside),
}


class _Unpickler(pickle._Unpickler):
    """Python's own interpreter of opcodes, without those that build objects in other ways."""

    # What mypy is not told of it.
    stack: list[Any]
    metastack: list[list[Any]]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(self, file: io.BytesIO, storages: _Storages | None = None) -> None:
        super().__init__(file, encoding="latin1")  # Detectron's files are from Python 2.
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        # numpy.core is numpy._core since NumPy 2, builtins was __builtin__ in Python 2.
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if f"{module}.{name}" not in _NAMES:
            raise Refused(f"{module}.{name}")
        return _NAMES[f"{module}.{name}"]

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, count, *view = reference
        if kind != "storage" or not isinstance(key, str) or any(view) or self._storages is None:
            raise _Damaged
        return self._storages.make(key, dtype, *_sizes((count,)))

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            target.set_state(state)
        elif isinstance(target, _Array):
            _, shape, dtype, fortran, data = state
            self.stack[-1] = _dtype(dtype).tensor(data, shape, fortran)
            for place in reversed(self.memo):
                if self.memo[place] is target:
                    self.memo[place] = self.stack[-1]
                    break
        elif not (callable(target) or isinstance(target, collections.OrderedDict)):
            raise _Damaged

    load_newobj = load_reduce  # calls a class

    def load_setitem(self) -> None:
        _check_mapping(self.stack[-3])  # numbers of a tensor stay as they are
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        _check_mapping(self.metastack[-1][-1])
        super().load_setitems()  # type: ignore[misc]

    def load_bytearray8(self) -> None:
        # Python's own makes room for as many bytes as are announced.
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))


def _check_mapping(target: Any) -> None:
    if not isinstance(target, dict):
        raise _Damaged


# The others build instances, call the extension registry, or read buffers out of band.
_LEFT_OUT = ("inst", "obj", "newobj_ex", "ext1", "ext2", "ext4", "next_buffer", "readonly_buffer")
_Unpickler.dispatch = {
    code: getattr(_Unpickler, method.__name__)
    for code, method in pickle._Unpickler.dispatch.items()  # type: ignore[attr-defined]
    if method.__name__.removeprefix("load_") not in _LEFT_OUT
}


# How torch.save's files from before 2020 begin: a number and their version, each a pickle.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_NUMBER, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001


class _Storages:
    """Makes each storage of a file once, and no more than the file can hold."""

    def __init__(self, size: int) -> None:
        self._left = size
        self.made: dict[str, _Storage] = {}

    def make(self, key: str, dtype: torch.dtype, count: int) -> _Storage:
        if key not in self.made:
            self._left -= count * dtype.itemsize
            if self._left < 0:
                raise _Damaged
            self.made[key] = _Storage(torch.zeros(count, dtype=dtype))
        if (self.made[key].numbers.dtype, self.made[key].numbers.numel()) != (dtype, count):
            raise _Damaged
        return self.made[key]

    def fill(self, key: str, data: bytes) -> None:
        numbers = self.made[key].numbers
        if len(data) != numbers.nbytes:
            raise _Damaged
        if data:  # a boolean byte may be 2
            stored = torch.uint8 if numbers.dtype == torch.bool else numbers.dtype
            numbers.copy_(torch.frombuffer(bytearray(data), dtype=stored))


def _read_archive(path: Path) -> Any:
    storages = _Storages(path.stat().st_size)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (name,) = (name for name in names if name.rpartition("/")[2] == "data.pkl")
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("numbers in the byte order of another processor")
        content = _Unpickler(io.BytesIO(_stored(archive, name)), storages).load()
        for key in storages.made:
            storages.fill(key, _stored(archive, f"{folder}data/{key}"))
    return content


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    # torch compresses nothing; what is compressed may be larger than any memory.
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise _Damaged
    return archive.read(name)


def _read_legacy(file: io.BytesIO) -> Any:
    storages = _Storages(len(file.getbuffer()))
    start, version, machine = (_Unpickler(file).load() for _ in range(3))
    if (start, version, machine["little_endian"]) != (_LEGACY_NUMBER, _LEGACY_VERSION, True):
        raise _Damaged
    content = _Unpickler(file, storages).load()
    keys = _Unpickler(file).load()
    if sorted(keys) != sorted(storages.made):
        raise _Damaged
    for key in keys:
        numbers = storages.made[key].numbers
        if int.from_bytes(file.read(8), "little") != numbers.numel():
            raise _Damaged
        storages.fill(key, file.read(numbers.nbytes))
    return content
