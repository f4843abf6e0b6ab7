"""Which kernels train a run: the faster ones of ``SVP.FAST``, the same for every arm; or those with
which a resumed run equals an uninterrupted one bit for bit, and whether one does."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.utils import comm
from torch import nn

from scratch_vs_pretrain.run_info import Provenance

logger = logging.getLogger(__name__)

# Threads that filter proposals beside one another.
PARTS = 4


def is_deterministic(cfg: Any) -> bool:
    """Tells whether a config's run repeats itself: on CPU always, on a GPU if it is asked to."""
    return bool(cfg.MODEL.DEVICE == "cpu" or cfg.SVP.DETERMINISTIC)


@contextlib.contextmanager
def deterministic_kernels(cfg: Any) -> Iterator[None]:
    """Lets torch choose the same sums in the same order each time, where a config asks for it.

    On a GPU an operation that cannot be repeated raises RuntimeError and is named. On the CPU that
    would be too strict: the few kernels of which torch says so differ on GPUs only.
    """
    if not is_deterministic(cfg):
        yield
        return
    memory: Any = torch.utils.deterministic
    # CUDA's matrix products need it before they are first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    with contextlib.ExitStack() as restored:
        restored.callback(torch.use_deterministic_algorithms, enabled, warn_only=warns)
        torch.use_deterministic_algorithms(True, warn_only=cfg.MODEL.DEVICE == "cpu")
        # The first would fill every new tensor, to find reads of what nobody has written.
        switched_off = {"fill_uninitialized_memory": memory, "benchmark": torch.backends.cudnn}
        for name, module in switched_off.items():
            restored.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, False)
        yield


def numerics(cfg: Any) -> dict[str, Any]:
    """Returns what the last bits of a run depend on, as a part of run.json's ``provenance``."""
    cuda = cfg.MODEL.DEVICE != "cpu"
    return {
        "processes": comm.get_world_size(),
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name() if cuda else _processor(),
        "deterministic": is_deterministic(cfg),
    }


def inexact_because(before: Provenance | None, now: Mapping[str, Any]) -> list[str]:
    """Returns why a resume is not exact, by run.json's ``provenance`` of both starts."""
    reasons = []
    if not now["deterministic"]:
        reasons.append("the GPU's kernels do not repeat themselves (SVP.DETERMINISTIC is off)")
    elif now["device"] != "cpu" and now["processes"] > 1:
        reasons.append("the sums of several GPUs are not known to repeat themselves")
    if before is None or before.processor is None:
        return [*reasons, "it is not known what trained before"]
    names = ("processes", "threads", "processor", "deterministic")
    values = {name: (getattr(before, name), now[name]) for name in names}
    versions = {name: (before.versions.get(name), new) for name, new in now["versions"].items()}
    changed = [
        f"{name} was {old} before and is {new} now"
        for name, (old, new) in (*values.items(), *versions.items())
        if old != new
    ]
    return [*reasons, *changed]


def _processor() -> str:
    """Returns the processor's name: kernels are chosen by its instructions."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return torch.backends.cpu.get_cpu_capability()


def options_in_force(cfg: Any) -> tuple[str, ...]:
    """Returns the names of the options that are on and possible here, in alphabetical order.

    An option that this machine cannot do is left out with a warning, but for those that mean
    something on a GPU alone.
    """
    if not cfg.SVP.FAST.ENABLED:
        return ()
    asked = {name for name, on in cfg.SVP.FAST.items() if on and name != "ENABLED"}
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type != "cuda":
        asked -= {"PREFETCH", "OVERLAP"}
    if "BF16" in asked and not has_bf16(device):
        logger.warning("SVP.FAST.BF16 is left out: this machine would only emulate bfloat16")
        asked.remove("BF16")
    return tuple(sorted(asked))


def has_bf16(device: torch.device) -> bool:
    """Tells whether a device has instructions for bfloat16.

    oneDNN computes in bfloat16 on older processors too, more slowly than in float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def keep_norms_narrow(model: nn.Module) -> None:
    """Replaces the GroupNorms in a model by ones that return what they are given, bfloat16 too.

    Autocast on GPUs, unlike on processors, would widen every feature map to float32 for them. The
    sums inside of the kernel are in float32 either way.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.GroupNorm:
                sizes = child.num_groups, child.num_channels, child.eps
                narrow = _NarrowGroupNorm(*sizes, affine=False).train(child.training)
                narrow.weight, narrow.bias = child.weight, child.bias
                setattr(module, name, narrow)


class _NarrowGroupNorm(nn.GroupNorm):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # What F.group_norm calls; autocast knows only that one by name.
        output, _, _ = torch.ops.aten.native_group_norm(
            input.contiguous(),
            self.weight.to(input.dtype),
            self.bias.to(input.dtype),
            *input.shape[:2],
            math.prod(input.shape[2:]),
            self.num_groups,
            self.eps,
        )
        return output


class Autocast(nn.Module):
    """Calls a model under autocast; the backward pass, outside of it, follows by itself."""

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__()
        self._model = model
        self._device_type = torch.device(device).type

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        with torch.autocast(self._device_type, torch.bfloat16):
            return self._model(batch)


def overlap(model: nn.Module) -> None:
    """Changes a detector on a GPU in place: anchors are labelled while the backbone computes, and
    the proposals of several images are filtered at once.

    Both are many small kernels, between which Detectron2 waits for the GPU; on the main stream it
    waits for all that was asked for before, and nothing else runs meanwhile. The computations, and
    the random numbers they draw, stay as they are. A detector without a region proposal network
    does, too.
    """
    rpn: Any = getattr(model, "proposal_generator", None)
    if isinstance(rpn, RPN):
        # A user's own network keeps what it does otherwise, and its parts.
        kind: Any = type(type(rpn).__name__, (_OverlappingRPN, type(rpn)), {})
        overlapping = kind.__new__(kind)
        vars(overlapping).update(vars(rpn))
        overlapping.overlap_with(model.backbone, model.device)
        model.proposal_generator = overlapping


class _OverlappingRPN(RPN):
    anchor_generator: Any

    def overlap_with(self, backbone: nn.Module, device: torch.device) -> None:
        self._beside, ready = torch.cuda.Stream(device), torch.cuda.Event()
        self._streams = [torch.cuda.Stream(device) for _ in range(PARTS)]
        self._pool = ThreadPoolExecutor(PARTS, thread_name_prefix="proposals")
        # Labels need the ground truth, which is there before the backbone is asked for anything.
        backbone.register_forward_pre_hook(lambda *_: ready.record() if self.training else None)
        self.anchor_generator = _Beside(self.anchor_generator, self._beside, ready)

    def label_and_sample_anchors(self, anchors: Any, gt_instances: Any) -> Any:
        with torch.cuda.stream(self._beside):
            labels = super().label_and_sample_anchors(anchors, gt_instances)
        torch.cuda.current_stream(self._beside.device).wait_stream(self._beside)
        return labels

    def predict_proposals(
        self, anchors: Any, logits: list[torch.Tensor], deltas: list[torch.Tensor], sizes: list
    ) -> list:
        """Gives each of a few threads some of the images."""
        predict = super().predict_proposals
        if not self.training:
            return predict(anchors, logits, deltas, sizes)
        main = torch.cuda.current_stream(self._beside.device)
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")

        def part(number: int) -> list:
            mine = slice(number * len(sizes) // PARTS, (number + 1) * len(sizes) // PARTS)
            if mine.start == mine.stop:
                return []
            # A thread begins without the modes of the one that started it.
            with (
                torch.cuda.stream(self._streams[number]),
                torch.autocast("cuda", autocast[1], enabled=autocast[0]),
            ):
                self._streams[number].wait_stream(main)
                some_logits, some_deltas = ([level[mine] for level in x] for x in (logits, deltas))
                return predict(anchors, some_logits, some_deltas, sizes[mine])

        found = [one for some in self._pool.map(part, range(PARTS)) for one in some]
        for stream in self._streams:
            main.wait_stream(stream)
        return found


class _Beside(nn.Module):
    """Calls a generator of anchors, which takes the sizes of features alone, on another stream."""

    def __init__(self, generator: Any, stream: Any, ready: Any) -> None:
        super().__init__()
        self._generator, self._stream, self._ready = generator, stream, ready
        self.box_dim = generator.box_dim
        self.train(generator.training)

    def forward(self, features: list[torch.Tensor]) -> Any:
        if not self.training:
            return self._generator(features)
        self._stream.wait_event(self._ready)
        with torch.cuda.stream(self._stream):
            return self._generator(features)
