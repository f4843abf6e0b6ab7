"""What can be wrong or odd in a data set, and what training does about it."""

from __future__ import annotations

from dataclasses import dataclass

BREAKS, MENDED, ODD = "breaks training", "harmless", "worth knowing"


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        means: what it is for training.
        fate: what training does about it; empty where that is nothing.
    """

    means: str
    fate: str = ""

    def text(self) -> str:
        """Returns both, for a table."""
        return f"{self.means}: {self.fate}" if self.fate else self.means


@dataclass(frozen=True)
class Note:
    """One finding: its kind, a key of :data:`KINDS`, and where."""

    kind: str
    where: str


KINDS = {
    "missing image": Kind(BREAKS),
    "undecodable image": Kind(BREAKS),
    "unusable entry": Kind(BREAKS),
    "unusable XML": Kind(BREAKS),
    # At most SVP.MAX_UNREADABLE of them, and only where nothing is evaluated on them.
    "undecodable training image": Kind(MENDED, "another image takes its place"),
    "another size than stated": Kind(MENDED, "true size used"),
    "unknown category": Kind(MENDED, "dropped"),
    "annotation of a missing image": Kind(MENDED, "dropped"),
    "annotation marked ignore": Kind(MENDED, "dropped"),
    "degenerate box": Kind(MENDED, "dropped"),
    "box outside the image": Kind(MENDED, "dropped"),
    "box partly outside the image": Kind(MENDED, "clipped"),
    "no mask": Kind(MENDED, "dropped"),
    "invalid mask": Kind(MENDED, "dropped"),
    "RLE of another size": Kind(MENDED, "dropped"),
    "empty mask": Kind(MENDED, "dropped"),
    "polygon of fewer than three points": Kind(MENDED, "polygon left out"),
    "no valid keypoints": Kind(MENDED, "taken as unlabelled"),
    "image without instances": Kind(MENDED, "left out"),
    "greyscale image": Kind(MENDED, "converted"),
    "CMYK image": Kind(MENDED, "converted"),
    "EXIF-rotated image": Kind(MENDED, "turned"),
    "duplicate annotation id": Kind(ODD),
    "same image in several data sets": Kind(ODD),
    "XML names another file": Kind(ODD),
    "XML with fractions or without flags": Kind(ODD),
}
