import json
import os
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from scratch_vs_pretrain.analysis import report as drawing
from scratch_vs_pretrain.analysis.report import report, report_html
from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.analysis.stats.answer import answers
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.text import printable

DEMO = Path(__file__).parents[2] / "notebooks" / "data" / "demo"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = (
    "<script>document.title='owned'</script>\"'--></svg></style><img src=x onerror=alert(1)>"
    "=cmd|' /C calc'!A0 \\input{/etc/passwd} \x1b]0;owned\x07 \u202egnp.exe\u2066"
)


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


@pytest.fixture(scope="module")
def study(tmp_path_factory, folders_in):
    """Three pairs, below a folder with the name of their study."""
    folders = folders_in(tmp_path_factory.mktemp("report"))
    curve = {100: 5.0, 300: 15.0}
    for seed in range(3):
        for arm, end in (("scratch", 30.0 + seed / 10), ("pretrained", 31.0)):
            versions = {"device": "cpu", "versions": {"torch": "2.11"}}
            folder = folders.run(arm, seed, curve={**curve, 600: end}, provenance=versions)
            weights = "" if arm == "scratch" else "w.pth"
            (folder / "config.yaml").write_text(f"MODEL: {{WEIGHTS: '{weights}', DEPTH: 18}}\n")
    return folders.root / "output" / "demo"


@pytest.fixture(scope="module")
def file(study):
    """The report of that study, rendered once."""
    report(study, study.parent / "report.html")
    return study.parent / "report.html"


def words(text):
    return " ".join(" ".join(Page(text).words).split())


def test_the_answer_comes_first_and_then_its_evidence(study, file):
    text = words(file.read_text())
    (found,) = answers(load_runs(study))
    places = [text.index("Does pre-training help?")]
    for said in (found.lines[0].title, "What the arms differ in", "random weights", "The evidence"):
        places.append(text.index(said, places[-1]))
    assert found.setting in text
    assert "-0.9 ± 0.2" in text
    assert "6 runs, 6 of them finished" in text
    assert 'MODEL.WEIGHTS "" "w.pth"' in text
    assert "DEPTH" not in text
    assert "torch 2.11" in text


def test_how_to_repeat_it_names_the_folder_that_svp_run_was_given(study, file):
    """With the study's own folder it would train everything again, in output/demo/demo."""
    text = words(file.read_text())
    command = f"svp run {study.name}.yaml -o {study.parent} --weights pretrained=w.pth"
    assert f"{command} svp report {study} -o report.html NAME.yaml stands for" in text


def test_report_loads_nothing_and_its_ids_are_unique(file):
    page = Page(file.read_text())
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    assert {load for load in page.loads if not load.startswith("#")} == {"data:,"}
    assert {load[1:] for load in page.loads if load.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_provenance_runs_and_full_tables_are_folded(file):
    text = file.read_text()
    folded = " ".join(re.findall(r"<details>(.*?)</details>", text, re.DOTALL))
    for said in ("BCa low", "torch", "Every run", "comes within", "key by key"):
        assert said in folded
        assert said not in re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)


def test_several_studies_begin_with_an_overview():
    page_text = report_html(DEMO.parent / "demo_regimes")
    page = Page(page_text)
    text = " ".join(" ".join(page.words).split())
    start = text[: text.index("The demo's detector")]
    for study in ("less-shapes-100", "less-shapes-300", "less-shapes-1000", "less-shapes-3000"):
        assert study in start
        assert f"#study-{1 + (100, 300, 1000, 3000).index(int(study[12:]))}" in page.loads
    assert start.count("undecided") == 12
    assert re.search(r'id="s0-s0-.*id="s1-s0-.*id="s2-s0-.*id="s3-s0-', page_text, re.DOTALL)
    assert "AP against training images" in start


@pytest.fixture
def without_figures(monkeypatch):
    """Reports whose figures are not drawn, which takes most of their time."""
    for name in ("figure", "answer_figure"):
        monkeypatch.setattr(drawing, name, lambda *_, **__: None)
    monkeypatch.setattr(drawing, "_svg", lambda *_: Markup(""))


def test_the_overview_says_which_verdicts_assume_a_noise(folders, without_figures):
    for study in ("one", "other"):
        for arm, end in (("scratch", 30.0), ("pretrained", 33.0)):
            noise = {"sd": 0.2, "because": "x"}
            folders.run(arm, study=study, curve={100: end, 600: end}, noise=noise)
    overview = report_html(folders.root).split('class="overview"')[1].split("</table>")[0]
    assert overview.count('<span class="chip yes">yes</span> assuming +3.0 AP') == 2 * 2
    assert overview.count('<span class="chip undecided">undecided</span> +3.0 AP') == 2


def test_the_overview_has_a_row_for_each_arm_at_each_size(folders, without_figures):
    for size in (100, 1000):
        data = {"train": {"names": ["train"], "images": size, "sha256": str(size)}}
        for arm in ("scratch", "pretrained", "detector"):
            folders.run(arm, study="one", output=f"of {size}", size=size, data=data)
    folders.run("scratch", study="other")
    overview = report_html(folders.root).split('class="overview"')[1].split("</table>")[0]
    cells = [row.split("</td><td")[0] for row in overview.split("<tr>")[2:]]
    assert [" ".join(" ".join(Page(cell).words).split()) for cell in cells] == [
        "one 1,000 images: scratch pretrained",
        "1,000 images: scratch detector",
        "100 images: scratch pretrained",
        "100 images: scratch detector",
        "other",
    ]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, folders_in):
    """The report of a study with hostile text in every name."""
    folders = folders_in(tmp_path_factory.mktemp("hostile"))
    names = {"scratch": f"<b>scratch $\\frac{{$ {HOSTILE}", "pretrained": f"${HOSTILE}$"}
    for arm, name in names.items():
        folder = folders.run(
            arm, study="study", description=HOSTILE, reason=HOSTILE, thresholds={},
            losses=False, curve={300: 20.0, 600: 30.0}, arm_order=list(names.values()),
            provenance={"host": HOSTILE, "versions": {HOSTILE: HOSTILE}},
            allowed_differences={HOSTILE: {HOSTILE: HOSTILE}},
        )  # fmt: skip
        (folder / "config.yaml").write_text(f"KEY: {{'{arm}': 1, \"{HOSTILE[:8]}\": {arm}}}\n")
        file = folder / "run.json"
        content = json.loads(file.read_text()) | {"study": f"<img src=x>&{HOSTILE}", "arm": name}
        file.write_text(json.dumps(content))
        evaluation = folder / "evaluations/0000600.json"
        scores = json.loads(evaluation.read_text())
        scores["tasks"]["bbox"]["per_class"] = {HOSTILE: 3.0}
        evaluation.write_text(json.dumps(scores))
        folders.metrics(folder, range(19, 600, 20), **{HOSTILE: 2.0})
    hostile = folders.root / "=cmd<script>alert(1)<" / "script>\u202e\x1b.html"
    hostile.parent.mkdir()
    report(folders.root, hostile)
    return hostile


def test_what_users_wrote_is_escaped(hostile):
    page = Page(hostile.read_text())
    assert not {"script", "img", "b"} & set(page.tags)
    assert page.tags.count("svg") >= 2
    said = "".join(page.words)
    assert printable(HOSTILE) in said
    assert "\x1b" not in said
    assert "\u202e" not in said


def test_nothing_that_users_wrote_runs_in_a_browser(hostile, tmp_path, browse):
    """Neither as the page is, nor without the policy that forbids scripts."""
    text = hostile.read_text()
    policy = re.search("<meta http-equiv[^>]*>", text)[0]
    for page in (text, text.replace(policy, "")):
        (tmp_path / "page.html").write_text(page)
        shown, console = browse(tmp_path / "page.html", "--virtual-time-budget=3000", "--dump-dom")
        assert console == []
        assert "<title>Does pre-training help?" in shown
        assert not re.search("<(script|img)", shown)
        assert shown.count("<section") == page.count("<section")
        assert shown.count("<svg") == page.count("<svg")


def test_half_finished_studies_are_reported(folders):
    folders.run("scratch")
    folders.run("scratch", 1, state="diverged", reason="NaN loss", curve={}, iteration=40)
    folders.run("scratch", study="alone")
    text = "".join(Page(report_html(folders.root)).words)
    assert "has no partner here" in text
    assert "diverged" in text
    assert "NaN loss" in text
    assert "no folder" in text


def test_a_study_that_cannot_be_compared_leaves_the_others_their_report(folders):
    for study, batch in (("good", 8), ("bad", 16)):
        folders.run("scratch", study=study)
        folders.run("pretrained", study=study, images_per_batch=batch)
    text = "".join(Page(report_html(folders.root)).words)
    assert "differ in images per batch" in text


def test_bad_input(folders, tmp_path, without_figures):
    with pytest.raises(UserError, match=r"no run\.json"):
        report_html(tmp_path)
    folder = folders.run("scratch")
    folders.run("pretrained")
    (folder / "config.yaml").write_text("!!python/object:os.system {}")
    assert "config.yaml: not plain YAML" in words(report_html(folders.root))
    with pytest.raises(UserError, match="cannot be written"):
        report(folders.root, tmp_path / "none" / "report.html")


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """Opens a page in headless Chromium; returns what it wrote and what its console said."""
    if CHROMIUM is None:
        if os.environ.get("SVP_NEED_CHROMIUM"):
            pytest.fail("SVP_NEED_CHROMIUM is set, but there is no Chromium")
        pytest.skip("Chromium is not installed")

    def browse(page, *options):
        folder = tmp_path_factory.mktemp("profile")
        run = subprocess.run(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--no-first-run", f"--user-data-dir={folder}", "--enable-logging=stderr",
                # A request would fail, and its failure be on the console.
                "--host-resolver-rules=MAP * ~NOTFOUND", *options, page.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return run.stdout, re.findall("CONSOLE.*", run.stderr)

    return browse


# The report in a frame as wide as a phone, and a script around it that measures what is shown.
PHONE = """<!DOCTYPE html><meta charset="utf-8"><body>
<iframe style="width:390px;height:844px;border:0" srcdoc="{page}"></iframe>
<script>
window.addEventListener("load", () => {{
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const size = element => {{
    const box = element.getBoundingClientRect();
    return [box.width, box.height];
  }};
  const text = [...page.querySelectorAll("p, li, td, th, caption, figcaption, pre")];
  document.body.textContent = JSON.stringify({{
    width: view.innerWidth,
    scroll: page.documentElement.scrollWidth,
    requests: view.performance.getEntriesByType("resource").map(entry => entry.name),
    figures: [...page.querySelectorAll("figure svg")].map(size),
    paths: [...page.querySelectorAll("figure svg")].map(one => one.querySelectorAll("path").length),
    text: Math.min(...text.map(one => parseFloat(view.getComputedStyle(one).fontSize))),
  }});
}});
</script>"""


def test_report_on_a_phone(file, tmp_path, browse):
    (tmp_path / "phone.html").write_text(PHONE.format(page=escape(file.read_text())))
    shown, console = browse(tmp_path / "phone.html", "--virtual-time-budget=5000", "--dump-dom")
    found = json.loads(unescape(re.search(r"<body>(\{.*\})", shown)[1]))
    assert console == []
    assert found["requests"] == []
    assert found["width"] == 390
    assert found["scroll"] <= 390
    assert found["text"] >= 14
    assert len(found["figures"]) == 3
    # The first fits; wider ones are moved sideways, while the page stays still.
    assert found["figures"][0][0] <= 360
    assert all(width > 300 and height > 150 for width, height in found["figures"])
    assert all(paths > 20 for paths in found["paths"])


@pytest.mark.parametrize("dark", [False, True])
def test_report_as_a_picture(file, tmp_path, browse, dark):
    picture = tmp_path / "report.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _, console = browse(
        file, scheme, "--hide-scrollbars", "--window-size=1200,4000",
        f"--screenshot={picture}",
    )  # fmt: skip
    assert console == []
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    corner = pixels[0, 0].mean()
    assert corner < 60 if dark else corner > 240
    red, green, blue = np.moveaxis(pixels.astype(int), -1, 0)
    assert ((red - green > 60) & (green - blue > 30)).sum() > 200  # scratch's lines


def test_nothing_is_lost_on_paper(file, tmp_path, browse):
    """Tables fit the width of A4 within its margins, and what is folded is printed."""
    text = file.read_text().replace("@media print {", "@media all {").replace("@page", "@media")
    text = text.replace("body { max-width: none;", "body { width: 182mm; max-width: none;")
    measure = """<script>window.addEventListener("load", () => {
      const right = document.body.getBoundingClientRect().right;
      const wide = [...document.querySelectorAll("table, figure svg")].filter(
        one => one.getBoundingClientRect().right > right + 1);
      const hidden = [...document.querySelectorAll("details table")].filter(
        one => one.getBoundingClientRect().height == 0);
      document.body.textContent = JSON.stringify({wide: wide.length, hidden: hidden.length});
    });</script></body>"""
    text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", measure)
    (tmp_path / "paper.html").write_text(text)
    shown, _ = browse(tmp_path / "paper.html", "--virtual-time-budget=5000", "--dump-dom")
    assert json.loads(re.search(r"<body>(\{.*\})", shown)[1]) == {"wide": 0, "hidden": 0}
