import json
import platform

import pytest

from scratch_vs_pretrain.cli import main


def test_doctor_prints_json(capsys):
    assert main(["doctor", "--json"]) in (0, 1)
    assert platform.python_version() in json.dumps(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("seeds", ["0", "-1", "two"])
def test_a_demo_without_pairs_is_refused(tmp_path, capsys, seeds):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--seeds", seeds, "-o", str(tmp_path / "demo")])
    assert stop.value.code == 2
    assert "not a whole number above 0" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
