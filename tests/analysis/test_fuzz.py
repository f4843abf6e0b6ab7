"""Files of a run that a disk, an editor or somebody damaged: a sentence, never a traceback."""

import contextlib
import io
import json
import random
import shutil
from pathlib import Path

import pytest

from scratch_vs_pretrain.cli import main

DEMO = Path(__file__).parents[2] / "notebooks" / "data" / "demo"
PLACE = "@here@"

# What stands in a field's place, as JSON text.
VALUES = [
    b"null", b"5", b"-1", b"1.5", b'"text"', b'""', b"[]", b"{}", b"true", b"[null]",
    b"1" + b"0" * 30, b"1" + b"0" * 400, b"9" * 5000, b"1e308", b"1e999", b"NaN", b"-Infinity",
    b"[" * 200_000, b"[" * 150 + b"]" * 150, rb'"\ud800"', b'"\xff\xfe"', b'"\x1b]0;x\x07"',
    rb'"\u001b]0;title\u0007\u202e"', b'{"\\ud800": 1}', b"",
]  # fmt: skip

CHEAP = (
    ["status"], ["table"], ["table", "--kind", "samples"], ["conclude"], ["answer"],
    ["collect", "-o", "{out}/runs.csv"], ["table", "--kind", "catch-up"], ["errors"],
)  # fmt: skip
COSTLY = (
    ["plot", "-o", "{out}/curves.svg"], ["plot", "--x", "gpu-hours", "-o", "{out}/curves.svg"],
    ["plot", "--figure", "samples", "-o", "{out}/curves.svg"],
    ["report", "-o", "{out}/report.html"], ["collect", "-o", "{out}/runs.parquet"],
)  # fmt: skip


def fields(content, place=()):
    """Yields the place of every field of a JSON value."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in items:
        yield (*place, key)
        if isinstance(value, (dict, list)):
            yield from fields(value, (*place, key))


def replaced(content, place, value):
    """Returns JSON text in which a field has another value."""
    content = json.loads(json.dumps(content))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = PLACE
    return json.dumps(content).encode().replace(json.dumps(PLACE).encode(), value)


def mutants(content, rng, least):
    """Yields JSON texts: every field with some value, every value in some field."""
    places = list(fields(content))
    for place in places:
        yield replaced(content, place, rng.choice(VALUES))
    for value in VALUES:
        yield replaced(content, rng.choice(places), value)
    yield from VALUES
    for _ in range(max(0, least - len(places))):
        yield replaced(content, rng.choice(places), rng.choice(VALUES))


def say(command, study, out):
    """Returns status and what a command says on stderr."""
    words = [word.replace("{out}", str(out)) for word in command]
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(errors):
        status = main([words[0], str(study), *words[1:]])
    for text in (said.getvalue(), errors.getvalue()):
        assert all(line.isprintable() for line in text.split("\n")), repr(text)
    return status, errors.getvalue()


@pytest.fixture
def study(tmp_path):
    """The recorded study with one seed, short metrics and few evaluations."""
    for arm in ("scratch", "pretrained"):
        source = DEMO / arm / "1200it" / "seed0"
        folder = tmp_path / "study" / arm / "1200it" / "seed0"
        (folder / "evaluations").mkdir(parents=True)
        shutil.copyfile(source / "run.json", folder / "run.json")
        rows = (source / "metrics.json").read_bytes().splitlines(keepends=True)
        (folder / "metrics.json").write_bytes(b"".join(rows[::12]))
        for name in ("0000600.json", "0001200.json"):
            shutil.copyfile(source / "evaluations" / name, folder / "evaluations" / name)
    return tmp_path / "study"


@pytest.mark.parametrize(
    ("name", "count", "every"),
    [("run.json", 70, 10), ("evaluations/0001200.json", 30, 10), ("metrics.json", 30, 10)],
)
def test_every_field_may_be_anything(study, tmp_path, name, count, every):
    rng = random.Random(7)
    file = study / "pretrained" / "1200it" / "seed0" / name
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True) if name == "metrics.json" else [whole]
    made = [*mutants(json.loads(lines[-1]), rng, 0)]
    rng.shuffle(made)
    refused = 0
    for number, mutant in enumerate(made[:count]):
        at = rng.randrange(len(lines))
        file.write_bytes(b"".join([*lines[:at], mutant + b"\n", *lines[at + 1 :]]))
        commands = [CHEAP[number % len(CHEAP)], CHEAP[(number * 3 + 1) % len(CHEAP)]]
        if number % every == 0:
            commands.append(COSTLY[number // every % len(COSTLY)])
        for command in commands:
            try:
                status, errors = say(command, study, tmp_path)
            except Exception as error:
                raise AssertionError(f"{command}: {mutant[:300]!r}") from error
            assert status in (0, 1, 2)
            refused += status != 0
            assert len(errors) < 2000
            if status == 2:
                assert errors.startswith("svp: error: ")
                assert errors.count("\n") == 1
    assert refused
