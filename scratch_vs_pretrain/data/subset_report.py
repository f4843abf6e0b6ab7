"""What ``svp subset`` shows of a data set and writes of it."""

from __future__ import annotations

from pathlib import Path

from scratch_vs_pretrain.data.datasets import source
from scratch_vs_pretrain.data.statistics import count
from scratch_vs_pretrain.data.subsets import digest
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import read_json, write_atomically


def image_ids(name: str) -> list[int | str]:
    """Returns the image ids of a data set, ascending, numbers before texts.

    Raises:
        UserError: no such data set, or its annotations cannot be used.
    """
    file, _ = source(name)
    count(file)  # checks the form
    ids = [image["id"] for image in read_json(file)["images"]]
    return sorted(ids, key=lambda identity: (isinstance(identity, str), identity))


def subset_text(name: str) -> str:
    """Returns the description of a data set as `svp subset` prints it.

    Raises:
        UserError: no such data set, or its annotations cannot be used.
    """
    found = count(source(name)[0])
    sizes = ", ".join(f"{number:,} {size}" for size, number in found.sizes.items())
    listed = sorted(found.present.items(), key=lambda item: -item[1])
    present = ", ".join(f"{category} {number:,}" for category, number in listed)
    absent = ", ".join(found.absent)
    rows = {
        "images": f"{found.images:,} ({found.empty:,} without instances)",
        "instances": f"{found.instances:,}, and {found.crowds:,} crowds",
        "instances per image": f"{found.instances / found.images:.2f}" if found.images else "-",
        "sizes": sizes,
        "categories present": f"{len(found.present)}: {present}" if present else "0",
        "categories absent": f"{len(found.absent)}: {absent}" if absent else "0",
        "sha256 of the image ids": digest(image_ids(name)),
    }
    width = max(map(len, rows))
    return "\n".join([name, *(f"  {title:{width}}  {text}" for title, text in rows.items())])


def export(name: str, target: Path) -> Path:
    """Writes a data set's annotations to a new COCO file and returns it.

    Raises:
        UserError: no such data set, or the file is there already or cannot be written.
    """
    file, _ = source(name)
    if target.exists():
        raise UserError(f"{target}: exists already; choose another file name")
    try:
        write_atomically(target, file.read_bytes())
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    return target
