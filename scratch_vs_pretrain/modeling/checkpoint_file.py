"""Checkpoint files: found, opened and hashed once, and read without executing what they hold.

Python's own unpickler builds whatever a file names. Here each of a fixed list of names stands for
code below, dtypes come by name, and arrays and tensors are cut out of the file's bytes after shape
and size were checked. Everything else is refused.
"""

import collections
import functools
import hashlib
import io
import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import catalog as _catalog  # noqa: F401  registers catalog://
from detectron2.utils.file_io import PathManager
from torch import Tensor

from scratch_vs_pretrain.errors import UserError, regular
from scratch_vs_pretrain.run_folder import RunFolder, write_for_user

# Where checkpoints keep the state dict among other things.
CONTAINERS = ("model", "state_dict", "model_state", "model_state_dict", "blobs")
# What nested containers may hold in all, letters included, and an expanded tensor.
MOST_PARTS, MOST_EXPANDED = 10**7, 10**6

# Detectron's GroupNorm models as one would write them after detectron2://ImageNetPretrained/MSRA/
# R-50.pkl. They are not stored there; Detectron2's catalogue knows where, by a name without ending.
_GROUPNORM_MODEL = re.compile(
    r"(?:detectron2|catalog)://(ImageNetPretrained/FAIR/R-\d+-GN)(?:\.pkl)?"
)


def local_file(source: str | Path) -> Path:
    """Returns a readable local file for a path, or for a URI that Detectron2 can fetch.

    Detectron's GroupNorm models are found as ``detectron2://ImageNetPretrained/FAIR/R-50-GN.pkl``,
    too; ``timm://NAME`` is what timm downloads.
    """
    if "://" in str(source):
        catalogued = _GROUPNORM_MODEL.fullmatch(str(source))
        address = f"catalog://{catalogued[1]}" if catalogued else str(source)
        try:
            if address.startswith("timm://"):
                path = _timm_file(address.removeprefix("timm://"))
            else:
                path = Path(PathManager.get_local_path(address))
        except Exception as error:  # whatever a handler, a server or a catalogue may raise
            raise UserError(
                f"{source}: cannot be fetched ({' '.join(str(error).split())}); "
                "download it by other means and give its path"
            ) from None
    else:
        path = Path(source).expanduser()
    try:
        with regular(path).open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise UserError(f"{source}: cannot be read as weights ({error.strerror})") from None
    if empty:
        raise UserError(f"{source}: the file is empty; copy or make it again")
    return path


def _timm_file(name: str) -> Path:
    """Returns a file of the weights that timm knows for a network; downloads them once."""
    import timm

    path = Path(torch.hub.get_dir()) / "svp-timm" / f"{name}.pth"
    if not timm.is_model(name):
        raise ValueError(f"timm has no network {name}")
    if not path.is_file():
        save(path, timm.create_model(name, pretrained=True).state_dict())
    return path


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, *_version: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.lru_cache(maxsize=8)
def _opened(source: str, path: Path, *_version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns a file's tensors, and its notes."""
    try:
        content = load(path, source)
        _require_few(content)
        notes = content.get("svp") if isinstance(content, Mapping) else None
        plain = json.dumps(notes, allow_nan=False) if isinstance(notes, Mapping) else "{}"
        return find_tensors(content), json.loads(plain)
    except (RecursionError, TypeError, ValueError):
        raise UserError(_not_a_checkpoint(source)) from None


def _version(path: Path) -> tuple[Path, int, int]:
    found = path.stat()
    return path, found.st_mtime_ns, found.st_size


def weights_sha256(source: str | Path) -> str:
    """Returns the sha256 of a checkpoint file, computed once while it is unchanged."""
    return _sha256(*_version(local_file(source)))


def read_checkpoint(source: str | Path) -> dict[str, Tensor]:
    """Reads all tensors of a checkpoint, executing nothing that it holds.

    A file of :func:`local_file` stays in memory until it changes or :func:`forget_checkpoints`.

    Returns:
        Names to tensors on the CPU. A state dict within a container such as "model" or "state_dict"
        has its own names; further nesting is joined by dots ("teacher.backbone.conv1.weight").
    """
    tensors, _ = _opened(str(source), *_version(local_file(source)))
    if not tensors:
        raise UserError(f"{source}: holds no tensors; give a checkpoint or a state dict")
    return dict(tensors)


def read_metadata(source: str | Path) -> dict[str, Any]:
    """Returns what ``write_backbone`` noted in a file, empty for files of other origin."""
    return dict(_opened(str(source), *_version(local_file(source)))[1])


def forget_checkpoints() -> None:
    """Frees the memory of all checkpoints that were opened."""
    _opened.cache_clear()


def check_output(path: Path) -> None:
    """Refuses to write weights to another ending or into a run folder, whose files are its own."""
    if path.suffix != ".pth":
        raise UserError(f"{path}: a checkpoint's name ends in .pth; write {path}.pth")
    for folder in (path.parent.resolve() / path.name).parents:
        if RunFolder(folder).run_file.exists():
            raise UserError(f"{path}: lies in the run folder {folder}; choose a place outside it")


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values with ``torch.save``, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_for_user(path, buffer.getbuffer())


def write_backbone(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, Any]) -> None:
    """Writes backbone weights (Detectron2's names) and plain metadata, as :func:`save`."""
    model = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save(path, {"model": model, "svp": metadata})


def load(path: Path, source: str) -> Any:
    """Returns a checkpoint's content: tensors (arrays are tensors, too) and plain containers.

    Read are safetensors, torch's archives of today and files of before 2020, and other pickles;
    messages call them `source`.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY))
        if start[8:9] == b"{":
            from safetensors.torch import load_file

            return load_file(path)
        if start.startswith(b"PK\x03\x04"):
            return _read_archive(path)
        content = io.BytesIO(path.read_bytes())
        return _read_legacy(content) if start == _LEGACY else _Unpickler(content).load()
    except ModuleNotFoundError:
        raise UserError(f"{source}: a safetensors file; run: pip install safetensors") from None
    except _Refused as error:
        raise UserError(
            f"{source}: refused, nothing executed: it holds {error}, which is no tensor and could "
            "run code; save the state dict alone and give that"
        ) from None
    except Exception:  # bytes that are no pickle can raise anything
        raise UserError(_not_a_checkpoint(source)) from None


def find_tensors(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """Returns the tensors of a checkpoint's content; nested names are joined by dots."""
    if not isinstance(content, Mapping):
        return {}
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            return find_tensors(content[container])
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        if not isinstance(name, str) or name.endswith("_momentum"):
            continue
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, Mapping):
            found.update(find_tensors(value, f"{prefix}{name}."))
    return found


def _require_few(content: Any) -> None:
    """Ends the reading of what takes too long to look through: a file says by a few bytes that a
    container is in another one twice, and that one in another."""
    ahead, parts = [content], 0
    while ahead:
        one = ahead.pop()
        if isinstance(one, Mapping):
            one = [*one, *one.values()]
        if isinstance(one, list | tuple | str):
            parts += len(one)
            _require(parts <= MOST_PARTS)
            ahead += [] if isinstance(one, str) else one


def _not_a_checkpoint(source: str) -> str:
    return f"{source}: truncated, or not a checkpoint; copy or make it again"


class _Refused(Exception):
    """Carries what a pickle asked for and does not get."""


def _require(fits: bool) -> None:
    """Ends the reading of a file of which one part does not fit the others."""
    if not fits:
        raise ValueError("damaged")


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
    code: Any
    order: str = "<"

    def __post_init__(self) -> None:
        if self.code not in _ARRAY_TYPES:
            raise _Refused(f"a numpy dtype {str(self.code)[:20]!r}")


@dataclass
class _Storage:
    """The numbers of one or several tensors."""

    numbers: Tensor

    def fill(self, data: bytes) -> None:
        _require(len(data) == self.numbers.nbytes)
        if data:  # a boolean byte may be 2
            stored = torch.uint8 if self.numbers.dtype == torch.bool else self.numbers.dtype
            self.numbers.copy_(torch.frombuffer(bytearray(data), dtype=stored))


def _make_array(dtype: Any, shape: Any, data: Any, fortran: Any = False) -> Tensor:
    if not isinstance(dtype, _Dtype):
        raise _Refused("an array of no plain dtype")
    if isinstance(data, str):  # of Python 2
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise _Refused("a numpy array without bytes")
    sizes = _sizes(shape)
    _require(math.prod(sizes) * int(dtype.code[1:]) == len(data))
    stored = "u1" if dtype.code == "b1" else dtype.code  # a boolean byte may be 2
    native = np.frombuffer(data, dtype.order + stored).astype(stored)
    array = native.reshape(sizes, order="F" if fortran else "C")
    return torch.from_numpy(array != 0 if dtype.code == "b1" else array)


def _make_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    sizes, strides, (start,) = _sizes(size), _sizes(stride), _sizes((offset,))
    _require(isinstance(storage, _Storage))
    end = start + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) + 1
    _require((end if all(sizes) else start) <= storage.numbers.numel())
    # A number may stand in many places; a few are expanded so, no weights are.
    _require(math.prod(sizes) <= max(storage.numbers.numel(), MOST_EXPANDED))
    return storage.numbers.as_strided(sizes, strides, start)


def _sizes(value: Any) -> tuple[int, ...]:
    _require(isinstance(value, tuple | list) and all(type(n) is int and n >= 0 for n in value))
    return tuple(value)


def _encode(text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"_codecs.encode with {encoding}")
    return text.encode("latin1")


def _beside(*_: Any) -> Callable[..., Any]:
    """Stands for what training scripts keep beside weights, and nobody reads."""
    return _beside


# What stands for each name that a pickle may hold; nothing else that it can make is callable.
_NAMES: dict[str, Any] = {
    "numpy.ndarray": _beside,
    "numpy.dtype": lambda code, *_: _Dtype(code),
    "numpy.core.multiarray._reconstruct": lambda *_: torch.empty(0),  # filled by a state
    "numpy.core.multiarray.scalar": lambda dtype, data: _make_array(dtype, (), data).item(),
    "numpy.core.numeric._frombuffer": lambda data, dtype, shape, order: _make_array(
        dtype, shape, data, order == "F"
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
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(self, file: io.BytesIO, room: int = 0) -> None:
        """`room` is what storages may take: no more bytes than the file can hold."""
        super().__init__(file, encoding="latin1")  # Detectron's files are from Python 2.
        self.storages: dict[str, _Storage] = {}
        self._room = room

    def find_class(self, module: str, name: str) -> Any:
        # numpy.core is numpy._core since NumPy 2, builtins was __builtin__ in Python 2.
        module = module.replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if f"{module}.{name}" not in _NAMES:
            raise _Refused(f"{module}.{name}")
        return _NAMES[f"{module}.{name}"]

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, count, *view = reference
        _require(kind == "storage" and isinstance(key, str) and not any(view))
        (size,) = _sizes((count,))
        if key not in self.storages:
            self._room -= size * dtype.itemsize
            _require(self._room >= 0)
            self.storages[key] = _Storage(torch.zeros(size, dtype=dtype))
        numbers = self.storages[key].numbers
        _require((numbers.dtype, numbers.numel()) == (dtype, size))
        return self.storages[key]

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.stack[-1](*arguments)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            # Version 3, no subarray, names or fields, and the default size, alignment and flags.
            version, order, *rest = state
            if (version, *rest) != (3, None, None, None, -1, -1, 0) or order not in "<>=|":
                raise _Refused("a numpy dtype with a state of its own")
            target.order = ">" if order == ">" else "<"
        elif isinstance(target, Tensor):
            _, shape, dtype, fortran, data = state
            target.data = _make_array(dtype, shape, data, fortran)
        else:
            _require(callable(target) or isinstance(target, collections.OrderedDict))

    load_newobj = load_reduce  # calls a class

    def load_setitem(self) -> None:
        _require(isinstance(self.stack[-3], dict))  # numbers of a tensor stay as they are
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        _require(isinstance(self.metastack[-1][-1], dict))
        super().load_setitems()  # type: ignore[misc]

    def load_bytearray8(self) -> None:
        # Python's own makes room for as many bytes as are announced.
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))


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


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:

        def read(name: str) -> bytes:
            # torch compresses nothing; what is compressed may be larger than any memory.
            _require(archive.getinfo(name).compress_type == zipfile.ZIP_STORED)
            return archive.read(name)

        names = archive.namelist()
        (name,) = (name for name in names if name.rpartition("/")[2] == "data.pkl")
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and read(f"{folder}byteorder") != b"little":
            raise _Refused("numbers in the byte order of another processor")
        reader = _Unpickler(io.BytesIO(read(name)), path.stat().st_size)
        content = reader.load()
        for key, storage in reader.storages.items():
            storage.fill(read(f"{folder}data/{key}"))
    return content


def _read_legacy(file: io.BytesIO) -> Any:
    start, version, machine = (_Unpickler(file).load() for _ in range(3))
    _require((start, version, machine["little_endian"]) == (_LEGACY_NUMBER, _LEGACY_VERSION, True))
    reader = _Unpickler(file, len(file.getbuffer()))
    content = reader.load()
    keys = _Unpickler(file).load()
    _require(sorted(keys) == sorted(reader.storages))
    for key in keys:
        storage = reader.storages[key]
        _require(int.from_bytes(file.read(8), "little") == storage.numbers.numel())
        storage.fill(file.read(storage.numbers.nbytes))
    return content
