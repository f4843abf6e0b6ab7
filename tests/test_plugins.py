import sys
from pathlib import Path

import pytest
from detectron2.modeling import BACKBONE_REGISTRY

from scratch_vs_pretrain.cli import main
from scratch_vs_pretrain.config import config_text, default_config, import_modules, load_config
from scratch_vs_pretrain.errors import UserError
from scratch_vs_pretrain.reproducibility import module_versions
from scratch_vs_pretrain.study.folders import prepare
from scratch_vs_pretrain.study.resolve import arm_config
from scratch_vs_pretrain.study.spec import load_study

DEMO_CONFIG = Path(__file__).parents[1] / "configs/demo_mask_rcnn_R_18_FPN_gn.yaml"
PARTS = """
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY

@BACKBONE_REGISTRY.register()
def build_{name}(cfg, shape):
    return None

def add_config(cfg):
    cfg.{name} = CfgNode({{"DEPTH": 3}})
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Writes modules of a package that can be imported; forgets them afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(package="users_project", **modules):
        folder = tmp_path / package
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").write_text("__version__ = '1.2'\n")
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        return folder

    yield write
    for name in [name for name in sys.modules if name.partition(".")[0] == "users_project"]:
        del sys.modules[name]


def test_what_a_module_registers_and_adds_to_the_config(project, tmp_path):
    project(parts=PARTS.format(name="MINE"))
    cfg = default_config(["users_project.parts"])
    assert "build_MINE" in BACKBONE_REGISTRY
    assert (cfg.MINE.DEPTH, cfg.SVP.IMPORTS) == (3, ("users_project.parts",))
    assert "MINE" not in default_config()


def test_a_run_folders_config_says_what_to_import_first(project, tmp_path):
    project(parts=PARTS.format(name="OURS"))
    cfg = default_config(["users_project.parts"])
    cfg.OURS.DEPTH = 5
    file = tmp_path / "config.yaml"
    file.write_text(config_text(cfg))
    assert load_config(file).OURS.DEPTH == 5


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("users_project.absent", "", "there is no module users_project.absent; install it"),
        ("absent_project.parts", "", "there is no module absent_project; install it"),
        ("users_project/parts.py", "", "is no module's name"),
        ("..parts", "", "is no module's name"),
        ("users_project.parts", "import absent", "importing users_project.parts fails: .*absent"),
        ("users_project.parts", "1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("users_project.parts", "raise SystemExit(3)", "fails: SystemExit: 3"),
        ("users_project.parts", "def", "fails: SyntaxError"),
        (
            "users_project.parts",
            "from detectron2.modeling import BACKBONE_REGISTRY as R\n"
            "@R.register()\ndef build_resnet_backbone(cfg, shape): ...\n",
            "fails: AssertionError: An object named 'build_resnet_backbone' was already reg",
        ),
    ],
)
def test_a_module_that_cannot_be_imported(project, name, text, said):
    project(parts=text)
    with pytest.raises(UserError, match=said) as error:
        import_modules([name], "study.yaml: imports")
    assert str(error.value).startswith("study.yaml: imports: ")
    assert "\n" not in str(error.value)


def test_add_config_that_fails_is_named(project):
    project(parts="def add_config(cfg): cfg.absent.key = 1")
    with pytest.raises(UserError, match=r"users_project\.parts\.add_config fails: .*absent"):
        default_config(["users_project.parts"])


def test_any_change_of_a_package_changes_its_version(project):
    folder = project(parts="", other="")
    import_modules(["users_project.parts"], "--import")
    before = module_versions(["users_project.parts"])
    assert before["users_project.parts"].startswith("1.2 (sha256 ")
    assert module_versions(["users_project.parts"]) == before
    (folder / "other.py").write_text("changed = 1\n")
    assert module_versions(["users_project.parts"]) != before


def test_import_on_the_command_line(project, write_study, tmp_path, capsys):
    project(parts=PARTS.format(name="THEIRS"))
    study = write_study(overrides={"THEIRS.DEPTH": 4})
    assert main(["plan", str(study), "--import", "users_project.parts"]) == 0
    assert main(["plan", str(study)]) == 2
    assert "unknown config key THEIRS.DEPTH" in capsys.readouterr().err
    assert main(["table", str(tmp_path), "--import", "users_project.absent"]) == 2
    assert "--import: there is no module users_project.absent" in capsys.readouterr().err


def test_a_study_names_its_modules(project, write_study, tmp_path, capsys):
    project(parts=PARTS.format(name="HIS"))
    study = write_study(overrides={"HIS.DEPTH": 4}, imports=["users_project.parts"])
    [folder] = prepare(load_study(study), tmp_path / "output")
    cfg = load_config(folder.config_file)
    assert (cfg.HIS.DEPTH, cfg.SVP.IMPORTS) == (4, ("users_project.parts",))
    study = write_study(imports=["users_project.absent"])
    assert main(["run", str(study), "-o", str(tmp_path / "none")]) == 2
    assert "imports: there is no module users_project.absent" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_modules_of_the_base_and_of_the_study_add_up(project, write_study, tmp_path):
    project(parts=PARTS.format(name="HERS"), more=PARTS.format(name="WHOSE"))
    base = tmp_path / "base.yaml"
    base.write_text(
        f"_BASE_: '{DEMO_CONFIG}'\nSVP: {{IMPORTS: [users_project.more]}}\nWHOSE: {{DEPTH: 7}}\n"
    )
    for imports in (["users_project.parts"], ["users_project.parts", "users_project.more"]):
        study = load_study(write_study(base=str(base), imports=imports))
        cfg = arm_config(study, study.arms[0], study.arms[0].schedules[0])
        assert cfg.SVP.IMPORTS == ("users_project.more", "users_project.parts")
        assert (cfg.HERS.DEPTH, cfg.WHOSE.DEPTH) == (3, 7)
