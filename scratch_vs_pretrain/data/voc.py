"""PASCAL VOC trees as COCO annotations, boxes as Detectron2's ``load_voc_instances`` has them."""

import contextlib
import dataclasses
import functools
import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path

from scratch_vs_pretrain._detectron2 import registered
from scratch_vs_pretrain.data import coco
from scratch_vs_pretrain.data.coco import CocoFile, Entry, FileState, Note, repeated, state_of
from scratch_vs_pretrain.errors import UserError, regular

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(name: str) -> bool:
    """Tells whether a registered data set is a VOC tree."""
    known = registered(name) or {}
    return known.get("dirname") is not None and known.get("split") is not None


def voc_location(name: str) -> tuple[Path, Path]:
    """Returns the file that lists the images of a VOC set, which is there, and the tree's root."""
    known = registered(name) or {}
    root = Path(known["dirname"])
    listing = _listing(root, known["split"])
    if not listing.is_file():
        hint = f"; set DETECTRON2_DATASETS to the folder that holds {root.name}"
        raise UserError(
            f"{name}: no such file as {listing}{hint if name.startswith('voc_') else ''}"
        )
    return listing, root


def voc_file(name: str, strict: bool = True) -> CocoFile:
    """Returns a VOC set as COCO annotations, read once per process until its list changes.

    File names are relative to the tree's root. Objects of other classes than the set's are left
    out. ``difficult`` stays with each annotation: Detectron2 trains on difficult objects, too. If
    `strict`, an XML file that cannot be used is a UserError.
    """
    from detectron2.data import MetadataCatalog

    listing, root = voc_location(name)
    classes = tuple(MetadataCatalog.get(name).thing_classes)
    if strict:
        return voc_tree(listing, root, classes)
    # To check it, anew: XML files may have changed, and the list of them not.
    return _with_classes(_parse_all.__wrapped__((listing, 0, 0), root), classes)


def voc_tree(listing: Path, root: Path, classes: Iterable[str]) -> CocoFile:
    """Returns a VOC tree as :func:`voc_file` does, which need not be registered."""
    return _with_classes(_read(listing, root), tuple(classes))


@functools.lru_cache(maxsize=8)
def _with_classes(tree: CocoFile, classes: tuple[str, ...]) -> CocoFile:
    numbers = {name: number for number, name in enumerate(classes, 1)}
    known = [one for one in tree.annotations if one["name"] in numbers]
    others = [one for one in tree.annotations if one["name"] not in numbers]
    strangers = [f"{one['image_id']}.xml ({one['name']})" for one in others]
    return dataclasses.replace(
        tree,
        annotations=[
            {**one, "id": number, "category_id": numbers[one["name"]]}
            for number, one in enumerate(known, 1)
        ],
        categories=[{"id": number, "name": name} for name, number in numbers.items()],
        notes=(*tree.notes, *(Note("object of another class", where) for where in strangers)),
    )


def voc_classes(trees: Iterable[tuple[Path, str]]) -> tuple[str, ...]:
    """Returns the classes of the objects in (root, split) trees, in alphabetical order."""
    names: set[str] = set()
    for root, split in trees:
        names.update(one["name"] for one in _read(_listing(root, split), root).annotations)
        if not names:
            raise UserError(f"{_listing(root, split)}: no image of it has an object")
    return tuple(sorted(names))


def voc_images(root: Path, split: str) -> list[str]:
    """Returns the images that a VOC set lists, relative to the tree's root."""
    return [f"JPEGImages/{identity}.jpg" for identity in _identities(_listing(root, split))]


def _listing(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _read(listing: Path, root: Path) -> CocoFile:
    tree = _parse_all(state_of(listing), root)
    for problem in tree.unusable:
        raise UserError(problem)
    return tree


@functools.lru_cache(maxsize=8)
def _parse_all(state: FileState, root: Path) -> CocoFile:
    """Reads all XML files; the digest is of the list of images and those of their annotations."""
    listing, *_ = state
    images: list[Entry] = []
    objects: list[Entry] = []
    notes: list[Note] = []
    problems, digest = [], hashlib.sha256()
    for identity in _identities(listing):
        file = root / "Annotations" / f"{identity}.xml"
        try:
            data = regular(file).read_bytes()
            image, found = _parse(identity, data, notes)
        except OSError as error:
            problems.append(f"{file}: cannot read the annotations ({error.strerror})")
        except UserError as error:
            problems.append(f"{file}: {error}")
        else:
            images.append(image)
            objects += found
            digest.update(f"{identity} {hashlib.sha256(data).hexdigest()}\n".encode())
    return CocoFile(listing, digest.hexdigest(), images, objects, [], tuple(problems), tuple(notes))


def _identities(listing: Path) -> list[str]:
    try:
        lines = regular(listing).read_text().split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{listing}: cannot be read ({error})") from None
    identities = [line.strip() for line in lines if line.strip()]
    if not identities:
        raise UserError(f"{listing}: is empty; list the images of the set in it, one a line")
    for number, identity in enumerate(identities, 1):
        if len(identity.split()) != 1 or "\0" in identity:
            raise UserError(f"{listing}: line {number}: give one image name, without its ending")
        if identity.startswith("/") or ".." in identity.split("/"):
            raise UserError(f"{listing}: line {number}: {identity} leads out of the tree")
    if len(set(identities)) < len(identities):
        again = identities[next(repeated(identities))]
        raise UserError(f"{listing}: lists {again} twice; take one of them out")
    return identities


def _parse(identity: str, data: bytes, notes: list[Note]) -> tuple[Entry, list[Entry]]:
    """Returns what an XML file says: the image and its objects."""
    try:
        tree = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"not valid XML ({error}); is it truncated?") from None
    entries = tree.findall("object")
    image = {
        "id": identity,
        "file_name": f"JPEGImages/{identity}.jpg",
        "width": int(_number(tree, "size/width", "the image")),
        "height": int(_number(tree, "size/height", "the image")),
    }
    objects = [_object(one, n, identity) for n, one in enumerate(entries, 1)]
    named = (tree.findtext("filename") or "").strip()
    if named not in ("", f"{identity}.jpg"):
        notes.append(Note("XML names another file", f"{identity}.xml ({named})"))
    if not all(map(_is_plain, entries)):
        notes.append(Note("XML with fractions or without flags", f"{identity}.xml"))
    thin = [f"{identity}.xml ({one['name']})" for one in objects if 1 in one["bbox"][2:]]
    notes += [Note("box one pixel wide", where) for where in thin]
    return image, objects


def _object(entry: ElementTree.Element, number: int, identity: str) -> Entry:
    where = f"object {number}"
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise UserError(f"{where} has no name; write its class there")
    left, top, right, bottom = (_number(entry, f"bndbox/{one}", where) for one in _CORNERS)
    # The first pixel has number 1, and the last one belongs to the box.
    width, height = right - left + 1, bottom - top + 1
    return {
        "image_id": identity,
        "name": name,
        "bbox": [left - 1, top - 1, width, height],
        "area": width * height,
        "iscrowd": 0,
        "difficult": int(_is_difficult(entry.findtext("difficult") or "")),
    }


def _is_difficult(text: str) -> bool:
    """Tells a number other than 0, or a word that says yes."""
    with contextlib.suppress(ValueError):
        return abs(float(text)) > 0
    return coco.flag(text) == 1


def _is_plain(entry: ElementTree.Element) -> bool:
    """Tells whether Detectron2's evaluator can read an object."""
    wanted = (*(f"bndbox/{corner}" for corner in _CORNERS), "truncated", "difficult")
    try:
        for path in wanted:
            int(entry.findtext(path) or "")
    except ValueError:
        return False
    name = entry.findtext("name") or ""
    return entry.find("pose") is not None and name == name.strip()


def _number(parent: ElementTree.Element, path: str, where: str) -> float:
    """Returns a number, a whole one as int; VOC 2012 has a few fractions."""
    text = (parent.findtext(path) or "").strip()
    with contextlib.suppress(ValueError):
        number = float(text)
        if abs(number) < 2**31:
            return int(number) if number == int(number) else number
    raise UserError(f"{where} has no number as {path.replace('/', '.')} (it is {text!r})")
