"""Users' own modules: what they register with Detectron2, and what they add to the config.

A study names them (``imports:``), or a command (``--import``), as Python's ``import`` does: modules
that are installed or on PYTHONPATH, never a file, so that a study file of somebody else's runs
nothing that is not installed. A run's config.yaml carries their names (``SVP.IMPORTS``), so that
every process of the run imports them before it reads anything.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from scratch_vs_pretrain.errors import UserError, reason_of
from scratch_vs_pretrain.text import nearest

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def import_modules(names: Iterable[str], where: str) -> list[ModuleType]:
    """Imports modules in the order given; a second time in one process does nothing.

    `where` says who names them, for messages: a study file and key, or ``--import``.
    """
    return [_import(name, where) for name in names]


def add_configs(modules: Iterable[ModuleType], cfg: Any) -> None:
    """Lets each module that has an ``add_config(cfg)`` add its keys to a config."""
    for module in modules:
        add_config = getattr(module, "add_config", None)
        if add_config is None:
            continue
        try:
            add_config(cfg)
        except Exception as error:
            raise UserError(f"{module.__name__}.add_config fails: {reason_of(error)}") from error


def versions(names: Iterable[str]) -> dict[str, str]:
    """Returns version and hash of the sources of modules that are imported, by name.

    The sources are all Python files of the outermost package that a module is in.
    """
    return {name: _version(name) for name in names}


def registered(registry: Any, name: str, key: str) -> Any:
    """Returns what one of Detectron2's kind of registries holds under a config value."""
    if name in registry:
        return registry.get(name)
    raise UserError(unknown_part(name, key, (known for known, _ in registry)))


def unknown_part(name: str, key: str, known: Iterable[str]) -> str:
    """Returns what is wrong with a config value that names none of these."""
    return (
        f"{key}: no {name!r} is registered{nearest(name, known)}; if it is your own, "
        "name its module under `imports`"
    )


def _import(name: str, where: str) -> ModuleType:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{where}: {name!r} is no module's name; write it as in Python's import, "
            "such as my_project.parts, and put its folder on PYTHONPATH or install it"
        )
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{where}: there is no module {error.name}; install it, or put its folder on "
                "PYTHONPATH"
            ) from None
        raise UserError(f"{where}: importing {name} fails: {reason_of(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{where}: importing {name} fails: {reason_of(error)}") from error


def _version(name: str) -> str:
    parts = name.split(".")
    packages = (sys.modules[".".join(parts[: end + 1])] for end in range(len(parts)))
    # A namespace package has no file; what is in it belongs to several distributions.
    top = next(module for module in packages if module.__file__)
    file = Path(str(top.__file__))
    files = sorted(file.parent.rglob("*.py")) if file.stem == "__init__" else [file]
    digest = hashlib.sha256()
    for source in files:
        digest.update(f"{source.relative_to(file.parent).as_posix()}\0".encode())
        digest.update(hashlib.sha256(source.read_bytes()).digest())
    version = getattr(top, "__version__", None)
    if version is None:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(top.__name__)
    return f"{version or 'unversioned'} (sha256 {digest.hexdigest()})"
