import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from scratch_vs_pretrain import _detectron2, cli

REPOSITORY = Path(__file__).parents[1]
OLD_SOURCE = "from PIL import Image\ndefault = Image.LINEAR\n"
NEW_SOURCE = "from PIL import Image\ndefault = Image.BILINEAR\n"

# What the first import of Detectron2 may change, told before and after it.
OBSERVE = """
import sys
import numpy as np
from PIL import Image
import scratch_vs_pretrain

def state():
    names = [name for name in ("int", "float", "str") if name in np.__dict__]
    return names, hasattr(Image, "LINEAR"), "detectron2._C" in sys.modules

before = state()
import detectron2
print(before == state(), state())
"""


def run_python(code, *path):
    """Runs `code` in a fresh interpreter; returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, REPOSITORY)))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def make_package(root, transform):
    """Writes the least that tells one Detectron2 from another."""
    package = root / "detectron2"
    (package / "data/transforms").mkdir(parents=True)
    (package / "data/transforms/transform.py").write_text(transform)
    (package / "__init__.py").write_text("")
    return package


@pytest.fixture
def v06():
    folder = _detectron2.source_folder()
    if folder is None or not _detectron2.is_v06(folder):
        pytest.skip("Detectron2 v0.6 is not what is installed here")
    return folder


# Detectron2's setup.py in small, and what setuptools makes of it.
SETUP = """
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension
setup(
    packages=["detectron2", "detectron2.data.transforms"],
    ext_modules=[CppExtension("detectron2._C", [])],
    cmdclass={"build_ext": BuildExtension},
)
"""


class TestImport:
    def test_this_package_alone_is_light(self):
        code = """
            import sys, time
            before, start = set(sys.modules), time.process_time()
            import scratch_vs_pretrain
            seconds = time.process_time() - start
            print(seconds < 0.1, {"numpy", "torch", "detectron2"} & set(sys.modules))
        """
        assert run_python(code) == "True set()"

    def test_looking_for_detectron2_where_it_is_absent(self):
        code = """
            import sys
            sys.path[:] = [path for path in sys.path if "site-packages" not in path]
            import importlib.util, scratch_vs_pretrain
            print(importlib.util.find_spec("detectron2"))
            try:
                import detectron2
            except ModuleNotFoundError as error:
                print(error)
        """
        assert run_python(code) == "None\nNo module named 'detectron2'"

    def test_a_command_that_needs_what_is_absent_says_so(self, monkeypatch, capsys):
        def fail():
            raise ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")

        monkeypatch.setattr("scratch_vs_pretrain.cli.doctor.diagnose", fail)
        assert cli.main(["doctor"]) == 2
        assert "torch is not installed; run: uv sync" in capsys.readouterr().err

    def test_in_any_process_of_an_environment_that_uv_made(self, tmp_path):
        """The wheel built by the stub has a file by which every process prepares Detectron2."""
        source = tmp_path / "source"
        make_package(source, OLD_SOURCE)
        (source / "detectron2/layers.py").write_text("from detectron2 import _C\n")
        (source / "setup.py").write_text(SETUP)
        stub = REPOSITORY / "packaging/detectron2-build-stub/src"
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build", "--build-lib", str(tmp_path / "site")],
            cwd=source,
            env={**os.environ, "PYTHONPATH": str(stub)},
            check=True,
        )
        code = f"""
            import site, sys
            sys.path.insert(0, {str(tmp_path / "site")!r})
            site.addsitedir(sys.path[0])
            assert "numpy" not in sys.modules
            import detectron2.layers
            print(detectron2.layers._C.__name__)
        """
        assert run_python(code) == "detectron2._C"


class TestDigest:
    def test_installed_modules_are_upstreams(self, v06):
        assert _detectron2.modules_digest(v06) == (_detectron2.V06_DIGEST, 140)

    def test_equals_the_shell_command(self, tmp_path):
        for name in (
            "b.py",
            "a/b.py",
            "a_b.py",
            "a-b/c.py",
            "aB.py",
            "Z.py",
            "ä.py",
            "model_zoo/zoo.py",
            "model_zoo/configs/x.py",
            "projects/p/q.py",
            "layers/projects/r.py",
            "data.txt",
        ):
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"# {name}\n")
        command = (
            "find . -name '*.py' -not -path './model_zoo/configs/*' -not -path './projects/*'"
            " | LC_ALL=C sort | xargs sha256sum | sha256sum"
        )
        shell = subprocess.run(
            command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert _detectron2.modules_digest(tmp_path) == (shell.stdout.split()[0], 9)

    def test_one_changed_byte_changes_it(self, tmp_path):
        package = make_package(tmp_path, OLD_SOURCE)
        digest, modules = _detectron2.modules_digest(package)
        (package / "__init__.py").write_text("\n")
        changed, same_modules = _detectron2.modules_digest(package)
        assert changed != digest
        assert same_modules == modules


class TestSourceFolder:
    def test_finds_the_installed_package(self, v06):
        assert (v06 / "engine" / "defaults.py").is_file()

    def test_clone_beside_the_user_is_no_package(self, tmp_path):
        """In a folder that holds a clone, Python takes it for a namespace package."""
        (tmp_path / "detectron2" / "configs").mkdir(parents=True)
        code = """
            import importlib.util, sys
            sys.path[:] = [path for path in sys.path if "site-packages" not in path]
            assert importlib.util.find_spec("detectron2") is not None
            from scratch_vs_pretrain import _detectron2
            print(_detectron2.source_folder())
        """
        assert run_python(code, tmp_path) == "None"

    def test_absent_package_is_a_user_error(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.delitem(sys.modules, "_scratch_vs_pretrain_detectron2_config", raising=False)
        with pytest.raises(_detectron2.UserError, match="not installed; run: uv sync"):
            _detectron2._config_module.__wrapped__("defaults")


class TestPrepare:
    def test_v06_imports_and_reads_voc(self, v06, tmp_path):
        """The VOC reader names np.str, which no import touches."""
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "ImageSets/Main/val.txt").write_text("000001\n000002\n")
        for name in ("000001", "000002"):
            (tmp_path / f"Annotations/{name}.xml").write_text(
                "<annotation><size><width>40</width><height>30</height></size>"
                "<object><name>dog</name><bndbox><xmin>2</xmin><ymin>3</ymin>"
                "<xmax>20</xmax><ymax>30</ymax></bndbox></object></annotation>"
            )
        code = f"""
            import scratch_vs_pretrain
            import detectron2.modeling
            from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances
            records = load_voc_instances({str(tmp_path)!r}, "val", CLASS_NAMES)
            print([(str(r["image_id"]), r["annotations"][0]["bbox"]) for r in records])
        """
        box = [1.0, 2.0, 20.0, 30.0]
        assert run_python(code) == str([("000001", box), ("000002", box)])

    def test_supplies_what_v06_lacks(self, tmp_path):
        make_package(tmp_path, OLD_SOURCE)
        assert run_python(OBSERVE, tmp_path).endswith("(['int', 'float', 'str'], True, True)")

    def test_does_nothing_for_upstream_main(self, tmp_path):
        package = make_package(tmp_path, NEW_SOURCE)
        assert not _detectron2.is_v06(package)
        assert run_python(OBSERVE, tmp_path).startswith("True ")

    def test_keeps_a_compiled_extension(self, tmp_path):
        package = make_package(tmp_path, OLD_SOURCE)
        (package / "_C.py").write_text("compiled = True\n")
        code = """
            import scratch_vs_pretrain
            from detectron2 import _C
            print(_C.compiled)
        """
        assert run_python(code, tmp_path) == "True"


def test_built_in_sets_are_known_without_importing_detectron2(run_code):
    code = """
        import sys, json
        from scratch_vs_pretrain import _detectron2
        print(json.dumps({n: _detectron2.registered(n) for n in _detectron2.registered_sets()}))
        assert not {"torch", "detectron2"} & sys.modules.keys()
    """
    early = run_python(code)
    assert len(json.loads(early)) == 35
    code = """
import sys, json
from scratch_vs_pretrain import _detectron2
import detectron2.data.datasets
early = json.loads(sys.argv[1])
late = {n: _detectron2.registered(n) for n in early}
for name, paths in early.items():
    assert {key: late[name][key] for key in paths} == paths
known = {n for n in _detectron2.registered_sets() if "json_file" in _detectron2.registered(n)}
known = {n for n in known if "panoptic" not in n}
assert known <= early.keys(), known - early.keys()
"""
    done = run_code(code, early, datasets=os.environ.get("DETECTRON2_DATASETS", "datasets"))
    assert done.returncode == 0, done.stderr


def test_the_default_config_is_detectron2s():
    from detectron2.config import get_cfg

    loaded = _detectron2._config_module("defaults")._C
    assert loaded == get_cfg()
    assert _detectron2.default_cfg() == get_cfg()


def test_configs_of_older_versions_are_upgraded_as_detectron2_does(tmp_path):
    from detectron2.config import get_cfg

    file = tmp_path / "old.yaml"
    file.write_text("VERSION: 1\nMODEL: {WEIGHT: other.pkl}\n")
    ours, upstreams = _detectron2._config_module("defaults")._C.clone(), get_cfg()
    content = {"VERSION": 1, "MODEL": {"WEIGHT": "other.pkl"}}
    _detectron2.merge_into(ours, content, str(file))
    upstreams.merge_from_file(str(file))
    assert ours == upstreams
    assert ours.MODEL.WEIGHTS == "other.pkl"
