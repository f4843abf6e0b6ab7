"""What a wheel holds, and what works where only the base requirements are installed."""

import ast
import configparser
import email
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "scratch_vs_pretrain"
TRAINING_ONLY = {"torch", "torchvision", "pb1-detectron2", "detectron2", "fvcore", "pycocotools"}

BUILD = """
import sys
from setuptools.build_meta import build_wheel
print(build_wheel(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the working tree, built from a copy so that the tree stays clean."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("scratch_vs_pretrain", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=source, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(folder / built.stdout.split()[-1]) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    return email.message_from_bytes(wheel.read(name))


class TestWheel:
    def test_base_requirements_have_no_torch(self, metadata):
        base = {
            canonicalize_name(requirement.name)
            for requirement in map(Requirement, metadata.get_all("Requires-Dist"))
            if requirement.marker is None
        }
        assert {"pandas", "matplotlib", "pyyaml"} <= base
        assert not base & TRAINING_ONLY

    def test_training_extras(self, metadata):
        requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
        extra = {
            name: {
                canonicalize_name(requirement.name)
                for requirement in requirements
                if requirement.marker and requirement.marker.evaluate({"extra": name})
            }
            for name in ("train", "train-upstream")
        }
        assert {"torch", "torchvision"} <= extra["train-upstream"]
        assert "pb1-detectron2" in extra["train"] - extra["train-upstream"]

    def test_everything_imported_is_required(self, metadata):
        """An import that some other package brings along ends in a traceback without it."""
        required = {
            canonicalize_name(Requirement(line).name) for line in metadata.get_all("Requires-Dist")
        }
        trees = (ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py"))
        nodes = [node for tree in trees for node in ast.walk(tree)]
        names = {
            alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        modules = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
        distributions = importlib.metadata.packages_distributions()
        missing = {
            module
            # Jinja2's and pydantic's own halves come with them.
            for module in modules - {"scratch_vs_pretrain", "markupsafe", "pydantic_core"}
            if not required & set(map(canonicalize_name, distributions.get(module, ())))
        }
        assert missing == set()

    def test_licence(self, wheel, metadata):
        assert metadata["License-Expression"] == "Apache-2.0"
        (name,) = (name for name in wheel.namelist() if name.endswith("LICENSE"))
        assert wheel.read(name) == (REPOSITORY / "LICENSE").read_bytes()

    def test_carries_configs_as_files(self, wheel):
        carried = {
            name: wheel.read(name)
            for name in wheel.namelist()
            if name.startswith("scratch_vs_pretrain/configs/")
        }
        configs = (REPOSITORY / "configs").rglob("*.yaml")
        assert carried == {
            f"scratch_vs_pretrain/{file.relative_to(REPOSITORY)}": file.read_bytes()
            for file in configs
        }
        assert carried

    def test_carries_the_papers_numbers(self, wheel):
        file = "scratch_vs_pretrain/analysis/tables/paper_results.csv"
        assert wheel.read(file) == (REPOSITORY / file).read_bytes()

    def test_carries_every_module_and_nothing_else(self, wheel):
        modules = {name for name in wheel.namelist() if name.endswith(".py")}
        assert modules == {str(file.relative_to(REPOSITORY)) for file in PACKAGE.rglob("*.py")}

    def test_has_the_command(self, wheel):
        (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        scripts = configparser.ConfigParser()
        scripts.read_string(wheel.read(name).decode())
        assert scripts["console_scripts"]["svp"] == "scratch_vs_pretrain.cli:main"


@pytest.fixture(scope="module")
def base_environment(wheel, metadata, tmp_path_factory):
    """What a plain `pip install` brings: the wheel, and the base requirements as installed here."""
    folder = tmp_path_factory.mktemp("base")
    wheel.extractall(folder)
    pending = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    seen = set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(distribution.locate_file(top)).resolve())
        pending += map(Requirement, distribution.requires or ())
    return folder


def run_base(code, folder):
    """Runs `code` where nothing but that can be imported."""
    return subprocess.run(
        # -S leaves out the site-packages of this environment.
        [sys.executable, "-S", "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


class TestBaseRequirementsOnly:
    def test_torch_is_really_absent(self, base_environment):
        assert "No module named 'torch'" in run_base("import torch", base_environment).stderr

    def test_reading_modules_import(self, base_environment):
        names = ["cli", "config", "errors", "run_folder"]
        names += [f"analysis.{file.stem}" for file in (PACKAGE / "analysis").glob("[!_]*.py")]
        code = "".join(f"import scratch_vs_pretrain.{name}\n" for name in names)
        result = run_base(code, base_environment)
        assert result.returncode == 0, result.stderr

    def test_doctor_says_what_is_missing(self, base_environment):
        code = (
            "from scratch_vs_pretrain.cli import doctor\n"
            "raise SystemExit(doctor.report(doctor.diagnose(), as_json=True))"
        )
        result = run_base(code, base_environment)
        assert (result.returncode, result.stderr) == (1, "")
        missing = {
            check["name"]
            for check in json.loads(result.stdout)["checks"]
            if check["status"] == "missing" and check["remedy"] == "uv sync"
        }
        assert missing >= {"Detectron2", "torch", "torchvision", "faster-coco-eval"}
        assert not missing & {"pandas", "matplotlib", "scratch-vs-pretrain"}


def test_citation_names_this_version(metadata):
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == metadata["Version"]
    assert citation["license"] == metadata["License-Expression"]
    assert {"Rethinking ImageNet Pre-training", "Detectron2"} == {
        reference["title"] for reference in citation["references"]
    }


class TestScripts:
    @pytest.mark.parametrize(
        "script", [*(REPOSITORY / "scripts").glob("*.sh"), REPOSITORY / ".ci/run"], ids=str
    )
    def test_is_valid_and_strict(self, script):
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert "set -euo pipefail" in script.read_text()

    @pytest.mark.parametrize("arguments", [[], ["--help"]])
    def test_run_pair_explains_itself(self, arguments):
        script = REPOSITORY / "scripts/run_pair.sh"
        result = subprocess.run(["bash", script, *arguments], capture_output=True, text=True)
        assert result.returncode == (0 if arguments else 2)
        assert "STUDY" in result.stdout + result.stderr
