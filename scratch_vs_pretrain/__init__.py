"""Paired scratch/pretrained detection experiments over Detectron2; see docs/api.md.

Everything below is imported when it is first used: neither this import nor that of a name needs
torch, and reading runs never does.
"""

import pkgutil
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain import _detectron2

if TYPE_CHECKING:
    from scratch_vs_pretrain.analysis.registry import figure, table
    from scratch_vs_pretrain.analysis.report import report
    from scratch_vs_pretrain.analysis.stats.answer import answer
    from scratch_vs_pretrain.analysis.stats.conclusions import conclude
    from scratch_vs_pretrain.api import load_runs, register_all, run
    from scratch_vs_pretrain.config import add_svp_config
    from scratch_vs_pretrain.errors import UserError
    from scratch_vs_pretrain.study.plan import plan
    from scratch_vs_pretrain.study.spec import load_study

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

# Where those are that api.py does not hold itself.
_ELSEWHERE = {
    "UserError": "errors",
    "add_svp_config": "config",
    "answer": "analysis.stats.answer",
    "conclude": "analysis.stats.conclusions",
    "figure": "analysis.registry",
    "load_study": "study.spec",
    "plan": "study.plan",
    "report": "analysis.report",
    "table": "analysis.registry",
}

_detectron2.prepare_on_import()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pkgutil.resolve_name(f"{__name__}.{_ELSEWHERE.get(name, 'api')}:{name}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
