import json

import pytest
from detectron2.utils.events import EventStorage, JSONWriter

from scratch_vs_pretrain.training import metrics_log


def test_smoothed_values_do_not_notice_a_resume(tmp_path):
    """The writer's medians after a resume equal those of an uninterrupted run."""
    losses = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]

    def log(storage, start, stop):
        for iteration in range(start, stop):
            storage.iter = iteration
            storage.put_scalar("loss", losses[iteration])

    def last_line(storage, name):
        writer = JSONWriter(str(tmp_path / name))
        writer.write()
        writer.close()
        return json.loads((tmp_path / name).read_text().splitlines()[-1])

    with EventStorage(0) as storage:
        log(storage, 0, 5)
        saved = metrics_log.recent(storage)
        log(storage, 5, 8)
        whole = last_line(storage, "whole.json")
    with EventStorage(5) as storage:
        metrics_log.restore(storage, saved)
        log(storage, 5, 8)
        resumed = last_line(storage, "resumed.json")
    assert resumed == whole == {"iteration": 7, "loss": 3.5}


def test_recent_values_are_bounded():
    with EventStorage(0) as storage:
        for iteration in range(50):
            storage.iter = iteration
            storage.put_scalar("loss", iteration)
        pairs = metrics_log.recent(storage)["loss"]
    assert len(pairs) == metrics_log.WINDOW
    assert pairs[-1] == [49.0, 49.0]


@pytest.mark.parametrize("end", ["\n", '\n{"iteration": 39, "lo'])
def test_lines_that_will_be_repeated_are_dropped(tmp_path, end):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 9}\n{"iteration": 19, "x": NaN}\n{"iteration": 29}' + end)
    metrics_log.truncate(file, completed=20)
    assert file.read_text() == '{"iteration": 9}\n{"iteration": 19, "x": NaN}\n'


def test_nothing_to_truncate(tmp_path):
    metrics_log.truncate(tmp_path / "metrics.json", 5)
    assert list(tmp_path.iterdir()) == []
