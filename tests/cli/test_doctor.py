import importlib
import importlib.metadata
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from scratch_vs_pretrain import _detectron2
from scratch_vs_pretrain.cli import doctor
from scratch_vs_pretrain.cli.doctor import DATASETS, Check, diagnose, report

# Stands in for curl: serves the archives in $ARCHIVES by their names, to a file or to the output.
CURL = """#!{python}
import os, shutil, sys
from pathlib import Path

name = sys.argv[-1].rpartition("/")[2]
archive = Path(os.environ["ARCHIVES"]) / name
if "--output-dir" in sys.argv:
    folder = Path(sys.argv[sys.argv.index("--output-dir") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(archive, folder / name)
else:
    sys.stdout.buffer.write(archive.read_bytes())
"""


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """An empty DETECTRON2_DATASETS, with a blank in its path."""
    folder = tmp_path / "data sets"
    folder.mkdir()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    return folder


def checks_by_name(checks):
    return {check.name: check for check in checks}


def look_at_datasets(folder):
    return checks_by_name(doctor._data_sets(folder))


def fill(root):
    for paths in DATASETS.values():
        for path in paths:
            is_file = Path(path).suffix in (".json", ".txt")
            file = root / path if is_file else root / path / "1.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")


class TestEnvironment:
    def test_where_the_tests_run_nothing_is_missing(self, capsys):
        pytest.importorskip("detectron2")
        checks = diagnose()
        assert report(checks) == 0, capsys.readouterr().out
        names = checks_by_name(checks)
        assert names["torch"].found == importlib.metadata.version("torch")
        assert names["import detectron2.engine"].found == "works"
        assert names["device"].status == "ok"

    def test_recognizes_the_unchanged_v06(self):
        folder = _detectron2.source_folder()
        if folder is None or not _detectron2.is_v06(folder):
            pytest.skip("Detectron2 v0.6 is not what is installed here")
        assert doctor._detectron2_source() == Check(
            "Detectron2", "v0.6, its 140 modules byte-identical to upstream's tag"
        )

    @pytest.mark.parametrize(
        ("source", "found", "status"),
        [
            ("Image.LINEAR", "v0.6, but its 1 modules differ", "note"),
            ("Image.BILINEAR", "upstream main", "ok"),
        ],
    )
    def test_tells_other_detectron2s(self, tmp_path, monkeypatch, source, found, status):
        (tmp_path / "data/transforms").mkdir(parents=True)
        (tmp_path / "data/transforms/transform.py").write_text(source)
        monkeypatch.setattr(_detectron2, "source_folder", lambda: tmp_path)
        check = doctor._detectron2_source()
        assert (found in check.found, check.status) == (True, status)

    @pytest.mark.parametrize("version", ["0.0.1", "99.0", None])
    def test_version_outside_the_declared_range(self, monkeypatch, version):
        def installed(name, real=importlib.metadata.version):
            if name != "torch":
                return real(name)
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(importlib.metadata, "version", installed)
        check = checks_by_name(doctor._requirements())["torch"]
        assert check.status == "missing"
        assert "needs" in check.found
        assert check.remedy == "uv sync"

    def test_package_itself_not_installed(self, monkeypatch):
        def absent(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "requires", absent)
        assert list(doctor._requirements()) == [
            Check("scratch-vs-pretrain", "not installed", "missing", "uv sync")
        ]

    def test_packages_that_do_not_fit_together(self, monkeypatch):
        def broken(name):
            raise RuntimeError("operator torchvision::nms\ndoes not exist")

        monkeypatch.setattr(importlib, "import_module", broken)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "torchvision" or None)
        assert list(doctor._imports()) == [
            Check(
                "import torchvision",
                "RuntimeError: operator torchvision::nms does not exist",
                "missing",
                "uv sync",
            )
        ]


class TestDataSets:
    def test_names_and_paths_are_detectron2s(self):
        pytest.importorskip("detectron2")
        from detectron2.data import MetadataCatalog
        from detectron2.data.datasets import builtin

        coco = {
            **builtin._PREDEFINED_SPLITS_COCO["coco"],
            **builtin._PREDEFINED_SPLITS_COCO["coco_person"],
        }
        for name, paths in DATASETS.items():
            if name in coco:
                assert paths == coco[name]
            else:
                registered = MetadataCatalog.get(name)
                folder = Path(registered.dirname).name
                assert paths == (
                    f"{folder}/JPEGImages",
                    f"{folder}/Annotations",
                    f"{folder}/ImageSets/Main/{registered.split}.txt",
                )

    def test_absent_folder(self, tmp_path):
        (check,) = doctor._data_sets(tmp_path / "none")
        assert check.status == "note"
        assert str(tmp_path / "none") in check.found
        assert check.remedy.startswith("export DETECTRON2_DATASETS=")

    def test_complete_folder(self, datasets):
        fill(datasets)
        checks = look_at_datasets(datasets)
        assert {check.status for check in checks.values()} == {"ok"}
        assert checks["coco_2017_train"].found == "1 files in coco/train2017"

    def test_names_the_part_that_is_absent(self, datasets):
        for name, paths in DATASETS.items():
            for part in (paths[0], paths[-1]):
                fill(datasets)
                path = datasets / part
                (path / "1.jpg" if path.is_dir() else path).unlink()
                check = look_at_datasets(datasets)[name]
                assert (check.status, check.found) == ("note", f"no {part}")

    def test_remedies_mend(self, datasets, tmp_path):
        """Every command is really run, with a curl that serves archives laid out as published."""
        archives = tmp_path / "archives"
        archives.mkdir()
        members = {
            "train2017.zip": ["train2017/1.jpg"],
            "val2017.zip": ["val2017/1.jpg"],
            "val2014.zip": ["val2014/1.jpg"],
            "annotations_trainval2017.zip": [
                f"annotations/{kind}_{split}2017.json"
                for kind in ("instances", "person_keypoints")
                for split in ("train", "val")
            ],
            "coco_annotations_minival.tgz": ["annotations/instances_valminusminival2014.json"],
            "VOCtrainval_06-Nov-2007.tar": _voc_members(2007),
            "VOCtrainval_11-May-2012.tar": _voc_members(2012),
        }
        for name, files in members.items():
            _make_archive(archives / name, files)
        curl = tmp_path / "bin" / "curl"
        curl.parent.mkdir()
        curl.write_text(CURL.format(python=sys.executable))
        curl.chmod(curl.stat().st_mode | stat.S_IXUSR)
        search = os.pathsep.join(
            [str(curl.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        environment = {**os.environ, "PATH": search, "ARCHIVES": str(archives)}

        before = look_at_datasets(datasets)
        assert {name for name, check in before.items() if check.status != "ok"} == set(DATASETS)
        for remedy in {check.remedy for check in before.values() if check.remedy}:
            subprocess.run(
                ["bash", "-c", f"set -eo pipefail; {remedy}"], env=environment, check=True
            )
        assert {check.status for check in look_at_datasets(datasets).values()} == {"ok"}


class TestReport:
    OK = Check("Python", "3.11")
    NOTE = Check("voc_2012_val", "no VOC2012", "note", "fetch it")
    MISSING = Check("torch", "not installed", "missing", "uv sync")

    @pytest.mark.parametrize(
        ("checks", "status"),
        [([OK], 0), ([OK, NOTE], 0), ([OK, MISSING], 1), ([MISSING, OK, NOTE], 1)],
    )
    def test_exit_status(self, checks, status, capsys):
        assert report(checks) == status
        assert report(checks, as_json=True) == status

    def test_each_problem_has_its_command(self, capsys):
        report([self.OK, self.MISSING, self.NOTE, Check("pandas", "", "missing", "uv sync")])
        printed = capsys.readouterr().out
        assert "For torch, pandas:\n    uv sync\n" in printed
        assert "For voc_2012_val:\n    fetch it\n" in printed
        assert "For Python" not in printed

    def test_json_holds_everything(self, capsys):
        report([self.OK, self.MISSING], as_json=True)
        written = json.loads(capsys.readouterr().out)
        assert written["ok"] is False
        assert [Check(**check) for check in written["checks"]] == [self.OK, self.MISSING]


def _voc_members(year):
    splits = [f"ImageSets/Main/{split}.txt" for split in ("train", "val", "trainval")]
    return [
        f"VOCdevkit/VOC{year}/{name}" for name in ("JPEGImages/1.jpg", "Annotations/1.xml", *splits)
    ]


def _make_archive(file, members):
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for member in members:
                archive.writestr(member, "{}")
        return
    with tarfile.open(file, "w:gz" if file.suffix == ".tgz" else "w") as archive:
        for member in members:
            entry = tarfile.TarInfo(member)
            entry.size = 2
            archive.addfile(entry, io.BytesIO(b"{}"))
