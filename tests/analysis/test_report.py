import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from scratch_vs_pretrain.analysis.report import report_html, write_report
from scratch_vs_pretrain.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<script>alert(1)</script>\"'--></svg>"


class Page(HTMLParser):
    """Collects tags, what they load and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.ids, self.words = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "data", "action")
        self.loads += [value for name, value in attributes if name in names]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture
def study(folders):
    curve = {100: 5.0, 300: 15.0}
    for seed in range(3):
        for arm, end in (("scratch", 30.0 + seed / 10), ("pretrained", 31.0)):
            versions = {"device": "cpu", "versions": {"torch": "2.11"}}
            folder = folders.run(arm, seed, curve={**curve, 600: end}, provenance=versions)
            weights = "" if arm == "scratch" else "w.pth"
            (folder / "config.yaml").write_text(f"MODEL: {{WEIGHTS: '{weights}', DEPTH: 18}}\n")
    return folders


def test_report_says_what_was_found(study):
    text = " ".join(" ".join(Page(report_html(study.root)).words).split())
    assert "scratch (600it) ends at 30.1 bbox/AP, pretrained (600it) at 31.0" in text
    assert "a gap of -0.9 ± 0.2 over 3 seeds" in text
    assert "6 runs, 6 of them finished" in text
    assert 'MODEL.WEIGHTS "" "w.pth"' in text
    assert "DEPTH" not in text
    assert "torch 2.11" in text


def test_report_loads_nothing_and_its_ids_are_unique(study):
    page = Page(report_html(study.root))
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    assert {load for load in page.loads if not load.startswith("#")} == {"data:,"}
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_what_users_wrote_is_escaped(folders):
    for arm in ("scratch", "pretrained"):
        folder = folders.run(
            arm, study="study", description=HOSTILE, reason=HOSTILE, thresholds={},
            provenance={"host": HOSTILE, "versions": {HOSTILE: HOSTILE}},
            allowed_differences={HOSTILE: {HOSTILE: HOSTILE}},
        )  # fmt: skip
        (folder / "config.yaml").write_text(f"KEY: {{'{arm}': 1, \"{HOSTILE[:8]}\": {arm}}}\n")
        for file in [folder / "run.json"]:
            content = file.read_text()
            file.write_text(content.replace('"study": "study"', '"study": "<img src=x>&"'))
    page = Page(report_html(folders.root))
    assert "script" not in page.tags
    assert "img" not in page.tags


def test_half_finished_studies_are_reported(folders):
    folders.run("scratch")
    folders.run("scratch", 1, state="diverged", reason="NaN loss", curve={}, iteration=40)
    folders.run("scratch", study="alone")
    text = "".join(Page(report_html(folders.root)).words)
    assert "has no partner here" in text
    assert "diverged" in text
    assert "NaN loss" in text
    assert "no folder" in text


def test_bad_input(folders, tmp_path):
    with pytest.raises(UserError, match=r"no run\.json"):
        report_html(tmp_path)
    folder = folders.run("scratch")
    folders.run("pretrained")
    (folder / "config.yaml").write_text("!!python/object:os.system {}")
    with pytest.raises(UserError, match=r"config\.yaml: not plain YAML"):
        report_html(folders.root)
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(folders.root, tmp_path / "none" / "report.html")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_report_in_a_browser(study, tmp_path, width, dark):
    write_report(study.root, tmp_path / "report.html")
    picture = tmp_path / "report.png"
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr",
        f"--screenshot={picture}", f"--window-size={width},4000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
    ]  # fmt: skip
    run = subprocess.run(
        [CHROMIUM, *options, (tmp_path / "report.html").as_uri()],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert picture.exists(), run.stderr
    assert not re.findall("CONSOLE.*", run.stderr)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    corner = pixels[0, 0].mean()
    assert corner < 60 if dark else corner > 240
    red, green, blue = np.moveaxis(pixels.astype(int), -1, 0)
    assert ((red - green > 60) & (green - blue > 30)).sum() > 200  # scratch's lines
