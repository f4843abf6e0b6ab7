"""The annotation files of subsets, each made once and kept.

A subset's file is an ordinary COCO file, so whatever reads data sets reads subsets. It lies in a
folder named by the fingerprint of the file that it was drawn from, and counts only with an index
beside it, written last, that states its sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scratch_vs_pretrain.data.coco import AnnotationFile, read_annotations
from scratch_vs_pretrain.data.coco_scan import CocoScan
from scratch_vs_pretrain.data.subsets import Subset, digest, draw
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.run_folder import write_atomically, write_json

# To be raised whenever the same annotation file would give another subset file or index.
CACHE_FORMAT = 2


@dataclass(frozen=True)
class SubsetFile:
    """A subset's annotation file.

    Attributes:
        file: in COCO format.
        ids_sha256: of the image ids, see :func:`~scratch_vs_pretrain.data.subsets.digest`.
        index: what is to be known of the file.
    """

    file: Path
    ids_sha256: str
    index: AnnotationFile


def cache_folder() -> Path:
    """Returns where subset files are kept: ``$SVP_CACHE``, or the user's cache folder.

    It may be deleted at any time.
    """
    if "SVP_CACHE" in os.environ:
        return Path(os.environ["SVP_CACHE"])
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "scratch_vs_pretrain"


def subset_file(subset: Subset, annotations: Path) -> SubsetFile:
    """Returns a subset's annotation file, made from that of its base unless it is there.

    Raises:
        UserError: the base's file cannot be used, it has too few images, or the cache cannot be
            written.
    """
    fingerprint = _fingerprint(annotations)
    size = str(subset.size).replace("/", "_of_")
    part = f"{'part_' if subset.relative else ''}{size}_s{subset.seed}.json"
    file = cache_folder() / "subsets" / fingerprint / part
    found = _read(file)
    if found is not None:
        return found
    scan = CocoScan(annotations)
    ids = [image["id"] for image in scan.images]
    chosen = draw(ids, subset.count(len(ids)), subset.seed)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, scan.extract(chosen))
        index = read_annotations(file)
        description = {"ids_sha256": digest(chosen), "index": asdict(index)}
        write_json(_index_file(file), description)
    except OSError as error:
        raise UserError(
            f"{file.parent}: cannot keep subsets there ({error.strerror}); set SVP_CACHE to "
            "another folder"
        ) from None
    except UserError as error:
        # What is wrong came with the annotations.
        raise UserError(str(error).replace(str(file), f"{annotations} ({subset.name})")) from None
    return SubsetFile(file, digest(chosen), index)


def _fingerprint(annotations: Path) -> str:
    # No program can set a change time, so a file that was changed never keeps its fingerprint.
    try:
        path = annotations.resolve()
        state = path.stat()
    except OSError as error:
        raise UserError(f"{annotations}: cannot read the annotations ({error.strerror})") from None
    facts = [CACHE_FORMAT, str(path), state.st_ino, state.st_size]
    facts += [state.st_mtime_ns, state.st_ctime_ns]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _index_file(file: Path) -> Path:
    return file.with_suffix(".index.json")


def _read(file: Path) -> SubsetFile | None:
    """Returns the file if it is there, complete and as it was written."""
    try:
        description: dict[str, Any] = json.loads(_index_file(file).read_bytes())
        fields = description["index"]
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        if sha256 != fields["sha256"]:
            return None
        index = AnnotationFile(
            file_names=tuple(fields["file_names"]),
            annotations=int(fields["annotations"]),
            categories=tuple(fields["categories"]),
            keypoints=tuple(fields["keypoints"]),
            skeleton=tuple((a, b) for a, b in fields["skeleton"]),
            usable=bool(fields["usable"]),
            sha256=sha256,
            sigmas=tuple(fields["sigmas"]),
            masks=bool(fields["masks"]),
            labelled=bool(fields["labelled"]),
            run_lengths=bool(fields["run_lengths"]),
            lacks=dict(fields["lacks"]),
        )
        return SubsetFile(file, str(description["ids_sha256"]), index)
    except (OSError, ValueError, KeyError, TypeError):
        return None
