import pytest

from scratch_vs_pretrain.analysis.figures.finals import iou_figure, sizes_figure
from scratch_vs_pretrain.analysis.figures.panels import SCRATCH_COLOR
from scratch_vs_pretrain.analysis.runs import load_runs
from scratch_vs_pretrain.errors import UserError


def write(folders, sizes, scratch, pretrained, seeds=1):
    for size, *ends in zip(sizes, scratch, pretrained, strict=True):
        data = {"train": {"names": ["train"], "images": size}}
        for arm, end in zip(("scratch", "pretrained"), ends, strict=True):
            for seed in range(seeds):
                curve = {600: end + seed}
                folders.run(arm, seed, curve=curve, study=f"less-{size}", data=data, losses=False)
    return load_runs(folders.root)


def caption(figure):
    return " ".join(figure.get_supxlabel().split())


def test_both_arms_by_size_with_the_worth_in_images(folders):
    """Scratch reaches 20 halfway, in log images, between 100 and 10,000."""
    runs = write(folders, (100, 10_000), (10.0, 30.0), (20.0, 35.0))
    figure = sizes_figure(runs, metrics=["bbox/AP"])
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    lines = {line.get_color(): line for line in ax.lines}
    assert lines[SCRATCH_COLOR].get_xydata().tolist() == [[100, 10], [10_000, 30]]
    (worth,) = [text.get_text() for text in ax.texts if "times" in text.get_text()]
    assert float(worth.split()[0]) == pytest.approx(10, rel=0.05)
    assert "what pretrained reaches with 100 images, scratch reaches with" in caption(figure)


def test_nothing_is_extrapolated(folders):
    runs = write(folders, (100, 300, 3000), (10.0, 12.0, 15.0), (20.0, 22.0, 24.0), seeds=2)
    figure = sizes_figure(runs)
    for metric in ("box AP", "mask AP"):
        said = f"more than 30 times as many, more than the largest size, {metric}."
        assert said in caption(figure)
    assert len(figure.axes) == 2
    assert "mean of 2 seeds" in caption(figure)


def test_the_arrow_is_of_an_arm_that_has_every_size(folders):
    """The first other arm lacks a size; without an arrow nobody would know what the next shows."""
    order = ["scratch", "few", "pretrained"]
    for size in (100, 10_000):
        data = {"train": {"names": ["train"], "images": size}}
        ends = {"scratch": 10.0 if size == 100 else 30.0, "pretrained": 20.0}
        ends |= {"few": 25.0} if size == 100 else {}
        for arm, end in ends.items():
            about = {"study": f"less-{size}", "data": data, "arm_order": order, "losses": False}
            folders.run(arm, curve={600: end}, **about)
    figure = sizes_figure(load_runs(folders.root), metrics=["bbox/AP"])
    assert "what pretrained reaches with 100 images, scratch reaches with" in caption(figure)


@pytest.mark.parametrize("digests", ["aa", "ab"])
def test_sizes_that_are_tested_on_different_data_share_no_figure(folders, digests):
    for size, digest in zip((100, 300), digests, strict=True):
        data = {
            "train": {"names": ["train"], "images": size},
            "test": {"names": ["test"], "sha256": digest},
        }
        for arm in ("scratch", "pretrained"):
            folders.run(arm, curve={600: 20.0}, study=f"less-{size}", data=data, losses=False)
    runs = load_runs(folders.root)
    if digests == "aa":
        assert sizes_figure(runs).axes
    else:
        with pytest.raises(UserError, match=r"data of different content .* cannot share a figure"):
            sizes_figure(runs)


def test_two_studies_of_one_size_are_not_one_line(folders):
    write(folders, (100, 300), (10.0, 12.0), (20.0, 22.0))
    data = {"train": {"names": ["train"], "images": 300}}
    for arm in ("scratch", "pretrained"):
        folders.run(arm, study="longer", data=data, losses=False)
    with pytest.raises(UserError, match="studies less-300 and longer both have 300 training"):
        sizes_figure(load_runs(folders.root))


def test_one_size_is_none(folders):
    runs = write(folders, (100,), (10.0,), (20.0,))
    with pytest.raises(UserError, match="fewer than two sizes"):
        sizes_figure(runs)


def test_iou_figure_shows_the_final_gap_per_threshold(three_pairs):
    figure = iou_figure(load_runs(three_pairs.root, plain=True))
    curve = figure.axes[0].lines[1]
    assert curve.get_xdata().tolist() == pytest.approx([0.5 + 0.05 * k for k in range(10)])
    assert curve.get_ydata().tolist() == pytest.approx([-2] * 10)


def test_iou_figure_compares_each_arms_longest_schedule(folders):
    folders.run("scratch", iterations=900, curve={900: 33.0})
    folders.run("pretrained", iterations=600, curve={600: 32.0})
    assert set(iou_figure(load_runs(folders.root, plain=True)).axes[0].lines[1].get_ydata()) == {1}


def test_iou_figure_needs_a_pair(folders):
    folders.run("scratch", 0)
    folders.run("pretrained", 1)
    with pytest.raises(UserError, match="pair"):
        iou_figure(load_runs(folders.root, plain=True))


def test_band_is_over_the_seeds_gaps(three_pairs):
    """The gaps are -1, -2 and -3 at each threshold."""
    (band,) = iou_figure(load_runs(three_pairs.root, plain=True)).axes[0].collections
    edges = band.get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (-3, -1)


def test_the_arm_from_scratch_may_have_any_name(folders):
    for arm in ("random", "imagenet"):
        init = {"name": "scratch" if arm == "random" else "checkpoint"}
        folders.run(arm, init=init, arm_order=["random", "imagenet"])
    (ax,) = iou_figure(load_runs(folders.root, plain=True)).axes[:1]
    assert [text.get_text() for text in ax.texts] == ["random - imagenet"]
