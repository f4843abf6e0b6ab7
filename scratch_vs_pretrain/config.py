"""The config node this layer adds to Detectron2's, how configs are merged, what they cannot hold.

Users' own modules add to them; a study names these (``imports:``), or a command (``--import``). A
run's config.yaml carries their names (``SVP.IMPORTS``), so that every process of the run imports
them before it reads anything. No torch here: modeling/checks.py looks at built models.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain import _detectron2
from scratch_vs_pretrain.errors import UserError, reason_of
from scratch_vs_pretrain.text import nearest

if TYPE_CHECKING:
    from detectron2.config import CfgNode


def add_svp_config(cfg: CfgNode) -> None:
    """Adds the ``SVP`` node, in which everything this layer can be told is defined."""
    node = type(cfg)
    cfg.SVP = node()
    # SOLVER.BASE_LR, SOLVER.WARMUP_ITERS and the "Nx" schedules are stated for this many images
    # per batch. An Nx schedule at another SOLVER.IMS_PER_BATCH is scaled by the linear rule.
    cfg.SVP.REFERENCE_BATCH = 16
    # Images of one orientation that are batched together to save padding
    # (DATALOADER.ASPECT_RATIO_GROUPING). A batch consists of such groups; the paper's holds eight
    # groups of two. Independent of the number of GPUs, so that the batches are, too.
    cfg.SVP.GROUP_SIZE = 2
    # What a BatchNorm checkpoint gives a GroupNorm network: "all" refuses it, because GroupNorm
    # keeps no running statistics; "affine_only" takes scale and shift.
    cfg.SVP.NORM_WEIGHTS = "all"
    # What MODEL.WEIGHTS fills: the "backbone", or as much as fits of a whole "detector".
    cfg.SVP.LOAD = "backbone"
    # What keeps its initial weights: "backbone" or nothing.
    cfg.SVP.FREEZE = ""
    # Checks that a study of mistakes switches off: see ADMISSIBLE.
    cfg.SVP.ADMIT = ()

    # The share of training images that may turn out unreadable. They are named in the log, counted
    # in run.json and replaced by the next readable image; beyond this share training stops.
    cfg.SVP.MAX_UNREADABLE = 0.01
    # The share of a data set's instances that may be dropped because they cannot be learnt. Beyond
    # it, and where all of a category is dropped or numbers do not mean what COCO means by them,
    # training is refused; 1.0 trains all the same.
    cfg.SVP.MAX_DROPPED = 0.05

    # Every so many iterations a line is added to metrics.json.
    cfg.SVP.LOG_PERIOD = 20
    # TensorBoard's events in the run folder's `tensorboard`, where tensorboard is installed.
    cfg.SVP.TENSORBOARD = True
    # Evaluations beside those of TEST.EVAL_PERIOD, after this many completed iterations. The last
    # iteration is always evaluated.
    cfg.SVP.EVAL_ITERATIONS = ()
    # Checkpoints kept in a run folder, the newest ones.
    cfg.SVP.KEEP_CHECKPOINTS = 2
    # On a GPU: only kernels that repeat themselves, so that a resumed run equals an uninterrupted
    # one bit for bit. Slower; an operation without such a kernel fails by name. On CPU always so.
    cfg.SVP.DETERMINISTIC = False

    # Modules of the user's own, imported in every process before configs are read; filled in from
    # the study's `imports`.
    cfg.SVP.IMPORTS = ()
    # What makes training samples of records: a registered name (docs/your_detector.md).
    cfg.SVP.MAPPER = "DatasetMapper"
    # What evaluates beside COCO's scores: registered names.
    cfg.SVP.EVALUATORS = ()
    # What updates weights: SGD, AdamW, or another registered name.
    cfg.SVP.OPTIMIZER = "SGD"
    # AdamW's rate of a layer as a multiple of that of the layer after it; ViTDet's is 0.7.
    cfg.SVP.LAYER_DECAY = 1.0

    # COCO-format data sets to register in every process: (name, annotation file, image folder).
    cfg.SVP.DATASETS = ()
    # PASCAL VOC trees to register: (name, root, split, year, classes).
    cfg.SVP.VOC_DATASETS = ()

    # Faster iterations, for both arms alike; docs/speed.md says what each option gains.
    cfg.SVP.FAST = node()
    # Switches those of the others on that are True; what a machine cannot do is left out there.
    cfg.SVP.FAST.ENABLED = False
    # Convolutions and matrix products of training in bfloat16 (autocast; weights, loss, gradients
    # and evaluation stay in float32), where the processor or GPU has instructions for it.
    cfg.SVP.FAST.BF16 = True
    # The optimizer's update as one kernel.
    cfg.SVP.FAST.FUSED_OPTIMIZER = True
    # The next batch is copied to the GPU while the last one trains.
    cfg.SVP.FAST.PREFETCH = True
    # What concerns one image after another runs on the GPU beside what concerns all.
    cfg.SVP.FAST.OVERLAP = True

    cfg.SVP.RESNETS = node()
    # Channels of the stem and of res2's output may be any multiple of 32 (Detectron2's builder
    # insists on 64 for R18 and R34); small studies train narrow networks.
    cfg.SVP.RESNETS.ALLOW_NARROW = False
    # The network of timm that build_svp_timm_fpn_backbone takes, such as convnext_tiny.
    cfg.MODEL.TIMM = node()
    cfg.MODEL.TIMM.NAME = ""
    cfg.SVP.TIMM = node()
    # "GN" for GroupNorm in place of the network's own normalization, where timm can do that.
    cfg.SVP.TIMM.NORM = ""
    cfg.SVP.VGG = node()
    # Channels of VGG-16's first stage; the last has eight times as many. VGG-16 itself has 64.
    cfg.SVP.VGG.WIDTH = 64


# Keys that older versions had, and why there are none now.
REMOVED = {
    "SVP.EVAL_IN_BACKGROUND": "scoring is too fast to need it",
    "SVP.FAST.CUDNN_BENCHMARK": "resuming was not exact with it",
    "SVP.FAST.CHANNELS_LAST": "it did not pay",
    "SVP.FAST.COMPILE_BACKBONE": "resuming was not exact with it",
}


def default_config(imports: Sequence[str] = (), where: str = "--import") -> CfgNode:
    """Returns Detectron2's default config with the ``SVP`` node and what users' modules add.

    Args:
        imports: users' modules to import first, each of which may have an ``add_config(cfg)``.
        where: who names them, for messages.
    """
    cfg = _detectron2.default_cfg()
    add_svp_config(cfg)
    cfg.SVP.IMPORTS = tuple(imports)
    for module in import_modules(imports, where):
        if hasattr(module, "add_config"):
            try:
                module.add_config(cfg)
            except Exception as error:
                name = f"{module.__name__}.add_config"
                raise UserError(f"{name} fails: {reason_of(error)}") from error
    return cfg


def load_config(path: Path, imports: Sequence[str] = ()) -> CfgNode:
    """Returns the frozen config that a run folder's ``config.yaml`` holds.

    It may be of an older version: keys that are no more (:data:`REMOVED`) are passed over.
    """
    content = _read(path)
    for key in REMOVED:
        section, _, name = key.rpartition(".")
        if isinstance(node := _node(content, section), dict):
            node.pop(name, None)
    cfg = read_config(path, imports, str(path), content)
    cfg.freeze()
    return cfg


def read_config(
    path: Path, imports: Sequence[str], where: str, content: dict[str, Any] | None = None
) -> CfgNode:
    """Returns the default config and a file over it, with the modules that the file and `imports`
    name, those of `where`; `content` is what was read of the file already."""
    content = _read(path) if content is None else content
    own = _node(content, "SVP.IMPORTS")
    if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
        own = []  # whatever it is, merging it says so
    import_modules(own, f"{path}: SVP.IMPORTS")
    cfg = default_config(named := tuple(dict.fromkeys((*own, *imports))), where)
    merge_file(cfg, path, content)
    cfg.SVP.IMPORTS = named
    return cfg


def merge_file(cfg: CfgNode, path: Path, content: dict[str, Any] | None = None) -> None:
    """Merges a config file (with ``_BASE_``), without executing or fetching what it names.

    `content` is what was read of it already.
    """
    content = _read(path) if content is None else content
    before = flatten(cfg)
    with _explained(cfg, str(path)):
        _detectron2.merge_into(cfg, content, str(path))
    _refuse_none(before, cfg, str(path))


def _read(path: Path) -> dict[str, Any]:
    """Returns a config file's content over that of its ``_BASE_`` files, as fvcore merges them."""
    import yaml
    from fvcore.common.config import CfgNode

    class Local(CfgNode):
        @classmethod
        def _open_cfg(cls, filename: str) -> Any:
            if "://" in filename:
                raise UserError(
                    f"{path}: _BASE_ is {filename!r}, but must be a file here; download it"
                )
            with open(filename, encoding="utf-8") as file:
                text = file.read()
            _refuse_repeated(text)
            return io.StringIO(text)

    with _explained({}, str(path)):
        try:
            content = Local.load_yaml_with_base(str(path))
        except yaml.YAMLError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not plain YAML ({reason})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping of config keys to values")
    return content


@functools.lru_cache(maxsize=16)  # a study reads its base for each config
def _refuse_repeated(text: str) -> None:
    """Refuses YAML in which a mapping has a key twice, of which loading it keeps one silently."""
    import yaml

    root = yaml.compose(text, yaml.SafeLoader)
    waiting, walked = [root], set()  # aliases lead to what was seen already, or in a circle
    while waiting:
        node = waiting.pop()
        if id(node) in walked or not isinstance(node, yaml.CollectionNode):
            continue
        walked.add(id(node))
        is_mapping, keys = isinstance(node, yaml.MappingNode), set()
        for key, value in node.value if is_mapping else zip(node.value, node.value, strict=True):
            waiting.append(value)
            if is_mapping and (key.tag, str(key.value)) in keys:
                raise yaml.MarkedYAMLError(None, None, f"{key.value} appears twice", key.start_mark)
            keys.add((key.tag, str(key.value)))


def merge_overrides(cfg: CfgNode, overrides: Mapping[str, Any], where: str) -> None:
    """Merges dotted keys; `where` names their origin in messages.

    A whole number may stand for a float.
    """
    before = flatten(cfg)
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        node = _node(cfg, section)
        if not isinstance(node, dict) or name not in node or isinstance(node[name], dict):
            raise UserError(f"{where}: {_unknown(key, flatten(cfg))}")
        with _explained(cfg, where, key):
            if isinstance(node[name], float) and type(value) is int:
                value = float(value)
            cfg.merge_from_list([key, value])
    _refuse_none(before, cfg, where)


def _refuse_none(before: Mapping[str, Any], cfg: CfgNode, where: str) -> None:
    """Refuses None in the place of what was a value: yacs lets it replace one of any type."""
    for key, value in flatten(cfg).items():
        if value is None and before.get(key) is not None:
            raise UserError(f"{where}: {key} has no value; it was {before[key]!r}")


def _node(content: Any, key: str) -> Any:
    """Returns what nested mappings hold under a dotted key, None where they hold nothing."""
    for part in key.split(".") if key else ():
        content = content.get(part) if isinstance(content, dict) else None
    return content


def config_text(cfg: CfgNode) -> str:
    """Returns a config as YAML that depends on its values alone, for :func:`load_config`.

    CfgNode.dump writes aliases where objects happen to be shared; after JSON none are.
    """
    import yaml

    return yaml.safe_dump(json.loads(json.dumps(cfg)))


# Their heads are described by MODEL.RETINANET, not by MODEL.ROI_HEADS.
ONE_STAGE = ("RetinaNet", "FCOS")


def classes_key(cfg: CfgNode) -> str:
    """Returns the key of the number of classes that a config's model tells apart."""
    part = "RETINANET" if cfg.MODEL.META_ARCHITECTURE in ONE_STAGE else "ROI_HEADS"
    return f"MODEL.{part}.NUM_CLASSES"


def flatten(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """Returns a config as one flat dictionary of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def differences(configs: Mapping[str, CfgNode]) -> dict[str, dict[str, Any]]:
    """Returns the dotted keys in which named configs differ, each with every config's value.

    Tuples and lists are alike: a config that was written and read again does not differ from
    itself. A key that a config lacks has the value None there.
    """
    flat = {name: flatten(cfg) for name, cfg in configs.items()}
    differing = {}
    for key in sorted({key for one in flat.values() for key in one}):
        values = {name: _plain(one.get(key)) for name, one in flat.items()}
        first, *others = values.values()
        if any(other != first for other in others):
            differing[key] = values
    return differing


def _unknown(key: str, known: Iterable[str]) -> str:
    if key in REMOVED:
        return f"{key} was removed in version 0.2: {REMOVED[key]}; delete the line"
    return f"unknown config key {key}{nearest(key, known)}"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# yacs: "Type mismatch (<class 'int'> vs. <class 'str'>) with values (1 vs. a) for config key: K"
_WRONG_TYPE = re.compile(
    r"<class '[\w.]*?(\w+)'> vs\. .* with values \((.*) vs\. (.*)\) for config key: (\S+)"
)


@contextlib.contextmanager
def _explained(cfg: CfgNode, where: str, merged: str = "") -> Iterator[None]:
    """Makes a sentence of what merging raises: yacs and fvcore validate with plain exceptions."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {_explain(cfg, error, merged)}") from None


def _explain(cfg: CfgNode, error: Exception, merged: str) -> str:
    text = " ".join(str(error).split()).strip("'\"")
    if unknown := re.search(r"Non-existent config key: (\S+)", text):
        return _unknown(unknown[1], flatten(cfg))
    if wrong := _WRONG_TYPE.search(text):
        kind, old, new, key = wrong.groups()
        if kind == "CfgNode":
            return f"{key} is a section, not a value"
        return f"{key} must be of type {kind}, like {old}, not {new}"
    if isinstance(error, OverflowError):
        return f"{merged} is a number too large"
    if isinstance(error, (RecursionError, MemoryError)):
        return "nested too deeply, or _BASE_ files that include each other"
    if isinstance(error, OSError):
        return f"cannot read {error.filename or 'it'} ({error.strerror or text})"
    if isinstance(error, (TypeError, AttributeError)):
        return f"not a mapping of config keys to values ({text})"
    return text


def import_modules(names: Iterable[str], where: str) -> list[ModuleType]:
    """Imports users' modules in the order given; a second time in one process does nothing.

    They are named as in Python's ``import``, never as files, so that a study file of somebody
    else's runs nothing that is not installed or on PYTHONPATH.

    `where` says who names them, for messages: a study file and key, or ``--import``.
    """
    found = []
    for name in names:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", name):
            raise UserError(
                f"{where}: {name!r} is no module's name; write it as in Python's import, "
                "such as my_project.parts, and put its folder on PYTHONPATH or install it"
            )
        try:
            found.append(importlib.import_module(name))
        except (Exception, SystemExit) as error:
            said = f"importing {name} fails: {reason_of(error)}"
            absent = error.name if isinstance(error, ModuleNotFoundError) else None
            if absent is not None and f"{name}.".startswith(f"{absent}."):
                said = f"there is no module {absent}; install it, or put its folder on PYTHONPATH"
            raise UserError(f"{where}: {said}") from error
    return found


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


# The checks that `admit` may name, each of which finds a mistake that trains without complaint.
ADMISSIBLE = (
    "frozen-stages-from-scratch",
    "frozen-norm-from-scratch",
    "small-batch-norm",
    "no-warm-up",
)
# Below this many images per process BatchNorm's error grows quickly (Wu & He, "Group
# Normalization", Figure 1).
SMALLEST_BATCH = 16


def missing_warmup(cfg: CfgNode) -> list[str]:
    """Finds a schedule that starts at the full learning rate."""
    solver = cfg.SOLVER
    if solver.WARMUP_ITERS <= 0:
        return [f"no warm-up: SOLVER.WARMUP_ITERS is {solver.WARMUP_ITERS}; set it above 0"]
    if (factor := solver.WARMUP_FACTOR) >= 1:
        return [f"no warm-up: SOLVER.WARMUP_FACTOR is {factor}; set it below 1, for example 0.001"]
    return []


def norm_problems(cfg: CfgNode) -> list[str]:
    """Finds normalization that a config with this backbone asks for."""
    # Parts that this detector does not have, or has without normalization.
    parts = ("RESNETS", "FPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD")
    norms = {f"MODEL.{part}.NORM": cfg.MODEL[part].NORM for part in parts}
    found = ", ".join(f"{key} {norm}" for key, norm in norms.items() if norm)
    if cfg.MODEL.BACKBONE.NAME != "build_svp_vgg16_backbone" or not found:
        return []
    return [f'VGG-16 has no normalization layers, but the config sets {found}; set it to ""']


def augmentation_problems(cfg: CfgNode) -> list[str]:
    """Finds what a config asks of ``TEST.AUG`` that cannot be done; each says what to change."""
    if not cfg.TEST.AUG.ENABLED:
        return []
    problems = []
    own = [name for name, *_ in cfg.SVP.VOC_DATASETS]
    voc = [name for name in cfg.DATASETS.TEST if str(name).startswith("voc_") or name in own]
    if voc:
        problems.append(
            "PASCAL VOC's numbers are without test augmentation: set TEST.AUG.ENABLED to False "
            f"for {', '.join(voc)}"
        )
    sizes = cfg.TEST.AUG.MIN_SIZES
    if not sizes or min(sizes) < 1 or cfg.TEST.AUG.MAX_SIZE < 1:
        problems.append("TEST.AUG.MIN_SIZES and MAX_SIZE must be sizes in pixels, at least one")
    return problems
