import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from scratch_vs_pretrain.pictures import ImageFacts, facts_of_images, image_facts


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_the_size_is_that_of_the_image_as_detectron2_reads_it(tmp_path, kind, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = tmp_path / "picture"
    Image.new("RGB", (16, 12), (9, 9, 9)).save(file, kind, exif=exif)
    found = image_facts(file)
    assert (found.height, found.width) == read_image(str(file), "BGR").shape[:2]
    assert found.turned == (orientation in range(2, 9))


def test_a_png_is_not_decoded(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(file)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert image_facts(file) == ImageFacts(20, 30, turned=False, mode="L")


def test_what_cannot_be_read_has_no_facts(tmp_path):
    Image.new("CMYK", (3, 4)).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(b"nothing")
    found = facts_of_images(tmp_path, {name: name for name in ("a.jpg", "b.jpg", "c.jpg", "\0")})
    assert found == {"a.jpg": ImageFacts(3, 4, turned=False, mode="CMYK")}
