"""Changes checkpoints opcode by opcode and reads them; prints how many were refused and read.

Run by test_checkpoint_file.py in a process of its own.
"""

import io
import pickle
import pickletools
import random
import resource
import sys
import tempfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import torch

from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.modeling.checkpoint_file import read_checkpoint, read_metadata

# More memory than this is a mutant that asked for it.
ROOM = 3 * 2**30

HOSTILE = [
    pickle.dumps((3, "|", (4, (1024,)), None, None, 4096, 1, 0))[:-1],
    pickle.dumps((3, "|", None, None, None, 8, 8, 63))[:-1],
    pickle.dumps((1, (2**40,), None, False, b"1234"))[:-1],
    b"cos\nsystem\n(S'true'\ntR",
    b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR",
    b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR",
    b"cnumpy\nndarray\n)\x81",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch.storage\n_load_from_bytes\n(C\x04junktR",
    b"ctorch\nFloatStorage\n",
    b"cbuiltins\nbytearray\nI99999999999\n\x85R",
    b"J\xff\xff\xff\xff",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x09\xff\xff\xff\xff\xff\xff\xff\xff\x00",
    b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"r\xff\xff\xff\xff",
    b"T\xff\xff\xff\x7f",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x00",
    *(bytes([code]) for code in b"RbosuaeltdQ0123()]}N\x81\x85\x86\x87\x88\x90\x91\x92\x93\x94"),
]


def opcodes(data: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(data)]
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]


def mutate(data: bytes, random_: random.Random) -> bytes:
    """Returns a pickle with one to three of its opcodes changed."""
    ops = opcodes(data)
    for _ in range(random_.randint(1, 3)):
        at = random_.randrange(len(ops))
        kind = random_.randrange(6)
        if kind == 0:
            del ops[at]
        elif kind == 1:
            ops.insert(at, random_.choice(ops))
        elif kind == 2:
            ops[at] = random_.choice(HOSTILE)
        elif kind == 3:
            ops.insert(at, random_.choice(HOSTILE))
        elif kind == 4:
            other = random_.randrange(len(ops))
            ops[at], ops[other] = ops[other], ops[at]
        elif len(ops[at]) > 1:  # another value of the same opcode
            changed = bytearray(ops[at])
            changed[random_.randrange(1, len(changed))] = random_.randrange(256)
            ops[at] = bytes(changed)
    return b"".join(ops)


def detectron2_pickle(random_: random.Random) -> bytes:
    content = {
        "model": OrderedDict(w=WEIGHTS, half=WEIGHTS.astype(np.float16), flag=WEIGHTS > 2),
        "best": np.float64(2.5),
        "__author__": "zoo",
    }
    return mutate(pickle.dumps(content, protocol=random_.choice((2, 3, 4, 5))), random_)


def torch_content() -> dict:
    tensor = torch.from_numpy(WEIGHTS)
    return {"state_dict": OrderedDict(w=tensor, t=tensor.t()), "svp": {"a": [1.5]}, "epoch": 3}


def legacy_file(random_: random.Random) -> bytes:
    file = io.BytesIO()
    torch.save(torch_content(), file, _use_new_zipfile_serialization=False)
    data, parts = file.getvalue(), []
    stream = io.BytesIO(data)
    for _ in range(5):  # number, version, machine, content, keys
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass
        parts.append(data[start : stream.tell()])
    changed = random_.choice((1, 2, 3, 3, 3, 3, 4))
    parts[changed] = mutate(parts[changed], random_)
    return b"".join(parts) + data[stream.tell() :]


def zip_file(random_: random.Random) -> bytes:
    file, out = io.BytesIO(), io.BytesIO()
    torch.save(torch_content(), file)
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(out, "w") as changed:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("data.pkl"):
                data = mutate(data, random_)
            changed.writestr(name, data)
    return out.getvalue()


def check_from_file(tensor: torch.Tensor, data: bytes) -> None:
    """Fails for numbers that are nowhere in the file, in either byte order.

    The second protocol writes the bytes of an array as text: latin1 in UTF-8.
    """
    if tensor.dtype == torch.bool:
        return
    stored = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    raw = stored.view(torch.uint8).numpy()
    swapped = raw.reshape(-1, tensor.element_size())[:, ::-1]
    for found in (raw.tobytes(), swapped.tobytes()):
        if found in data or found.decode("latin1").encode() in data:
            return
    raise AssertionError("memory that was not in the file")


def outcome(path: Path) -> str:
    """Returns "read" or "refused"; any other end is a fault."""
    try:
        tensors = read_checkpoint(path)
        read_metadata(path)
    except UserError as error:
        sentence = str(error)
    else:
        for tensor in tensors.values():
            check_from_file(tensor, path.read_bytes())
        return "read"
    assert sentence.startswith(f"{path}: ")
    assert "\n" not in sentence
    return "refused"


def main(count: int) -> None:
    random_ = random.Random(0)
    warnings.simplefilter("error")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, now + ROOM))
    counts: Counter = Counter()
    kinds = {"w.pkl": detectron2_pickle, "old.pth": legacy_file, "new.pth": zip_file}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            name, make = list(kinds.items())[number % len(kinds)]
            path = Path(folder) / f"{number}{name}"
            path.write_bytes(make(random_))
            counts[outcome(path)] += 1
            path.unlink()
    for what, number in counts.items():
        print(what, number)


WEIGHTS = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)

if __name__ == "__main__":
    main(int(sys.argv[1]))
