"""Paired scratch/pretrained detection experiments over Detectron2; see docs/api.md.

Everything below is imported when it is first used: neither this import nor that of a name needs
torch, and reading runs never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain import _detectron2

if TYPE_CHECKING:
    from scratch_vs_pretrain.api import (
        UserError,
        add_svp_config,
        answer,
        conclude,
        figure,
        load_runs,
        load_study,
        plan,
        register_all,
        report,
        run,
        table,
    )

__version__ = "0.2.0"

__all__ = [
    "UserError",
    "add_svp_config",
    "answer",
    "conclude",
    "figure",
    "load_runs",
    "load_study",
    "plan",
    "register_all",
    "report",
    "run",
    "table",
]

_detectron2.prepare_on_import()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scratch_vs_pretrain import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
