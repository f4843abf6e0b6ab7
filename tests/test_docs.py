"""The documentation's links lead somewhere and its commands are commands."""

import inspect
import itertools
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from scratch_vs_pretrain import config
from scratch_vs_pretrain.cli import build_parser

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
# Fenced blocks, blocks indented by four spaces, and code within a line.
CODE = re.compile(r"^```[^\n]*\n(.*?)^```|^ {4}(\S[^\n]*)|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
OPERATORS = {"&&", "||", "|", ";", "&", ">", ">>", "<"}


def page_id(page):
    return str(page.relative_to(REPOSITORY))


def links(page):
    """Yields the page's links that stay in the repository."""
    text = re.sub(CODE, "", page.read_text())
    for match in LINK.finditer(text):
        target = match[1] or match[2]
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page):
    """Returns the anchors that code-hosting sites give a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def svp_commands(page):
    """Yields the arguments of every `svp` command line that the page quotes.

    A synopsis with optional parts, `svp demo [--quick]`, is none.
    """
    text = page.read_text().replace("\\\n", " ")
    for match in CODE.finditer(text):
        for line in next(filter(None, match.groups()), "").splitlines():
            if re.search(r"\bsvp\b", line) and "[" not in line:
                yield from commands_in(line)


def commands_in(line):
    lexer = shlex.shlex(line.lstrip().removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command = []
    for token in [*lexer, ";"]:
        if token not in OPERATORS:
            command.append(token)
            continue
        while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
            del command[0]
        if command[:2] == ["uv", "run"]:
            del command[:2]
        if command[:1] == ["svp"] and len(command) > 1:
            yield command[1:]
        command = []


def parse(arguments):
    """Returns the exit status with which the parser takes or refuses the arguments."""
    try:
        build_parser().parse_args(arguments)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page_id(page)} links to {link}"
        assert target.is_relative_to(REPOSITORY), f"{page_id(page)} links outside: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page_id(page)} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_are_commands(page, capsys):
    for arguments in svp_commands(page):
        # `svp table` alone names the command; "N" stands for any number.
        whole = [*arguments, "--help"] if len(arguments) == 1 else arguments
        status = parse(["1" if argument == "N" else argument for argument in whole])
        assert status == 0, f"svp {shlex.join(arguments)}: {capsys.readouterr().err}"
        for argument in arguments:
            if argument.startswith(("configs/", "scripts/", "notebooks/")):
                assert (REPOSITORY / argument).exists(), f"{page_id(page)} names {argument}"


def test_commands_are_found_in_the_pages():
    commands = [command for page in PAGES for command in svp_commands(page)]
    assert ["demo"] in commands
    assert ["doctor"] in commands


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("svp table output/demo", [["table", "output/demo"]]),
        ("$ uv run svp demo --quick   # three minutes", [["demo", "--quick"]]),
        ("pip install uv && uv run svp demo", [["demo"]]),
        ("DATA=../x A=1 uv run svp run s.yaml | tail -1", [["run", "s.yaml"]]),
        ("svp table a > table.tex; svp plot b", [["table", "a"], ["plot", "b"]]),
        ("svp run s.yaml --weights 'a=b c'", [["run", "s.yaml", "--weights", "a=b c"]]),
        ("uv run pytest", []),
        ("svp", []),
    ],
)
def test_commands_are_found_in_a_line(line, expected):
    assert list(commands_in(line)) == expected


class _Node(SimpleNamespace):
    """A config node, as far as add_svp_config needs one."""


def _leaves(node, prefix):
    for name, value in vars(node).items():
        if isinstance(value, _Node):
            yield from _leaves(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def test_every_config_key_is_documented_where_it_is_defined():
    cfg = _Node()
    cfg.MODEL = _Node()
    config.add_svp_config(cfg)
    lines = inspect.getsource(config.add_svp_config).splitlines()
    documented = {
        key[1]
        for above, line in itertools.pairwise(lines)
        if (key := re.match(r"\s*cfg\.(SVP\.[A-Z0-9_.]+) = ", line))
        and above.strip().startswith("#")
    }
    keys = set(_leaves(cfg.SVP, "SVP"))
    assert keys
    assert keys <= documented
