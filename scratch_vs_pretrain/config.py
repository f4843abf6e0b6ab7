"""The config node this layer adds to Detectron2's, and how configs are merged."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratch_vs_pretrain import _detectron2, plugins
from scratch_vs_pretrain.errors import UserError
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


# Keys that older versions had, and what to do without them.
_DELETE = "delete the line"
REMOVED = {
    "SVP.EVAL_IN_BACKGROUND": f"scoring is too fast to need it; {_DELETE}",
    "SVP.FAST.CUDNN_BENCHMARK": f"resuming was not exact with it; {_DELETE}",
    "SVP.FAST.CHANNELS_LAST": f"it did not pay; {_DELETE}",
    "SVP.FAST.COMPILE_BACKBONE": f"resuming was not exact with it; {_DELETE}",
}


def default_config(imports: Sequence[str] = (), where: str = "--import") -> CfgNode:
    """Returns Detectron2's default config with the ``SVP`` node and what users' modules add.

    Args:
        imports: modules to import first; see :mod:`~scratch_vs_pretrain.plugins`.
        where: who names them, for messages.
    """
    cfg = _detectron2.default_cfg()
    add_svp_config(cfg)
    cfg.SVP.IMPORTS = tuple(imports)
    plugins.add_configs(plugins.import_modules(imports, where), cfg)
    return cfg


def load_config(path: Path, imports: Sequence[str] = ()) -> CfgNode:
    """Returns the frozen config that a run folder's ``config.yaml`` holds.

    It may be of an older version: keys that are no more (:data:`REMOVED`) are passed over.
    """
    content = _read(path, path)
    for key in REMOVED:
        section, _, name = key.rpartition(".")
        if isinstance(node := _node(content, section), dict):
            node.pop(name, None)
    own = _node(content, "SVP.IMPORTS")
    if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
        own = ()  # whatever it is, merging it says so
    cfg = default_config((*own, *imports), str(path))
    _merge(cfg, content, path)
    cfg.freeze()
    return cfg


def merge_file(cfg: CfgNode, path: Path) -> None:
    """Merges a config file (with ``_BASE_``), without executing or fetching what it names."""
    _merge(cfg, _read(path, path), path)


def _merge(cfg: CfgNode, content: dict[str, Any], path: Path) -> None:
    before = flatten(cfg)
    with _explained(cfg, str(path)):
        _detectron2.merge_into(cfg, content, str(path))
    # yacs lets None replace a value of any type.
    for key, value in flatten(cfg).items():
        if value is None and before.get(key) is not None:
            raise UserError(f"{path}: {key} has no value; it was {before[key]!r}")


def _read(file: Path, path: Path) -> dict[str, Any]:
    """Returns a config file's content over that of its ``_BASE_`` files, as fvcore merges them."""
    import yaml

    with _explained({}, str(path)), file.open(encoding="utf-8") as opened:
        try:  # libyaml takes a sixth of the time, and crashes where mappings are in 50,000 others
            fast = file.stat().st_size < 20_000
            loader = getattr(yaml, "CSafeLoader" if fast else "SafeLoader", yaml.SafeLoader)
            content = yaml.load(opened, loader)
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not plain YAML ({_one_line(error)})") from None
        bases, below = content.pop("_BASE_", ()), dict[str, Any]()
        for base in bases if isinstance(bases, (list, tuple)) else [bases]:
            if "://" in base:
                raise UserError(f"{path}: _BASE_ is {base!r}, but must be a file here; download it")
            below = _over(below, _read(file.parent / Path(base).expanduser(), path))
        return _over(below, content)


def _over(below: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    both = [key for key, value in content.items() if isinstance(value, dict) and key in below]
    return below | content | {key: _over(below[key], content[key]) for key in both}


def merge_overrides(cfg: CfgNode, overrides: Mapping[str, Any], where: str) -> None:
    """Merges dotted keys; `where` names their origin in messages.

    A whole number may stand for a float.
    """
    for key, value in overrides.items():
        section, _, name = key.rpartition(".")
        node = _node(cfg, section)
        if not isinstance(node, dict) or name not in node or isinstance(node[name], dict):
            raise UserError(f"{where}: {_unknown(key, flatten(cfg))}")
        before = node[name]
        with _explained(cfg, where, key):
            if isinstance(before, float) and type(value) is int:
                value = float(value)
            cfg.merge_from_list([key, value])
        if node[name] is None and before is not None:
            raise UserError(f"{where}: {key} has no value; it was {before!r}")


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
    keys = sorted({key for one in flat.values() for key in one})
    differing = {}
    for key in keys:
        values = {name: _plain(one.get(key)) for name, one in flat.items()}
        first, *others = values.values()
        if any(other != first for other in others):
            differing[key] = values
    return differing


def _unknown(key: str, known: Iterable[str]) -> str:
    if key in REMOVED:
        return f"{key} was removed in version 0.2: {REMOVED[key]}"
    return f"unknown config key {key}{nearest(key, known)}"


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


# yacs: "Type mismatch (<class 'int'> vs. <class 'str'>) with values (1 vs. a) for config key: K"
_WRONG_TYPE = re.compile(
    r"<class '[\w.]*?(\w+)'> vs\. .* with values \((.*) vs\. (.*)\) for config key: (\S+)"
)


@contextlib.contextmanager
def _explained(cfg: CfgNode, where: str, key: str = "") -> Iterator[None]:
    """Makes a sentence of what merging raises: yacs and fvcore validate with plain exceptions."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {_explain(cfg, error, key)}") from None


def _explain(cfg: CfgNode, error: Exception, merged: str) -> str:
    text = _one_line(error).strip("'\"")
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
