"""Which runs of a study may be compared, and what they are judged by: one thing for all of them."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from scratch_vs_pretrain.analysis.runs import RunRecord, grouped
from scratch_vs_pretrain.errors import UserError, from_validation
from scratch_vs_pretrain.run_folder import ADAPTIVE_FILE, read_bytes
from scratch_vs_pretrain.run_info import JUDGED_BY, Looks

# Config keys by which a study can let its arms differ in what they learn from.
DATA_KEYS = ("DATASETS.TRAIN", "SVP.DATASETS", "SVP.VOC_DATASETS")
BATCH_KEYS = ("SOLVER.IMS_PER_BATCH",)


class Unpaired(UserError):
    """A study has no arm from scratch, or none beside it: nothing is damaged."""


def scratch_arm(runs: Sequence[RunRecord]) -> str | None:
    """Returns the arm that starts from random weights, whatever its name.

    Raises:
        UserError: of one arm some runs say that they do, and some that they do not.
    """
    for arm, members in grouped(runs, lambda run: run.arm).items():
        if len({run.from_scratch for run in members}) < 2:
            continue
        told = {run.from_scratch: run for run in members if run.init.name}
        if len(told) > 1:
            raise UserError(
                f"study {members[0].study}: arm {arm} starts from random weights in "
                f"{told[True].folder}, and not in {told[False].folder}; correct init in the "
                "run.json of one, or give it to another arm"
            )
    return next((run.arm for run in runs if run.from_scratch), None)


def refuse_other_training(runs: Sequence[RunRecord]) -> None:
    """Raises UserError where finished runs of one size differ in more than their study says.

    What is not known is no difference. Seeds may start from weights of their own.
    """
    allowed = {key for run in runs for key in run.allowed_differences}
    seen: dict[Any, tuple[Any, RunRecord]] = {}
    for run in (run for run in runs if run.state == "finished"):
        for what, value, keys in (
            ("number of training images", run.train_images, DATA_KEYS),
            ("content of training data", run.data.train.sha256, DATA_KEYS),
            ("images per batch", run.images_per_batch, BATCH_KEYS),
            ("initial weights", run.init.sha256, ()),
        ):
            free: Any = run.arm if allowed.intersection(keys) else None
            of = (what, run.size, free if keys else (run.arm, run.seed))
            first, other = (value, run) if value is None else seen.setdefault(of, (value, run))
            if first != value:
                allow = f", or name {keys[0]} in the study's allow_differences" if keys else ""
                raise UserError(
                    f"study {run.study}: {other.folder} and {run.folder} differ in {what} "
                    f"({first!s:.40} and {value!s:.40}), so they cannot be compared; train one of "
                    f"them again as the other{allow * (run.arm != other.arm)}"
                )


def weights_of_seeds(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Says which arms start each seed from other weights (``init: run://.../seed``)."""
    arms = grouped([run for run in runs if run.init.sha256], lambda run: (run.arm, run.size))
    several = dict.fromkeys(
        arm for (arm, _), of in arms.items() if len({run.init.sha256 for run in of}) > 1
    )
    return tuple(
        f"Seeds of {arm} start from weights of their own, so its noise is also that of pre-training"
        for arm in several
    )


def refuse_different_rules(runs: Sequence[RunRecord]) -> None:
    """Raises UserError where runs are to be judged by different rules."""
    rules = ("thresholds", *JUDGED_BY)
    for run in runs:
        if any(getattr(run, name) != getattr(runs[0], name) for name in rules):
            raise UserError(
                f"study {run.study}: {runs[0].folder} and {run.folder} are to be judged by "
                "different margins, noises or metrics; start the study with `svp run` again, which "
                "writes its own into every run.json"
            )


def looks_at(runs: Sequence[RunRecord]) -> int:
    """Returns over how many looks a study's error is divided; 1 if it was trained as planned.

    Raises:
        UserError: the file that tells them is damaged.
    """
    level = 2 if runs[0].size is None else 3
    for study in runs[0].folder.absolute().parents[level : level + 1]:
        if (file := study / ADAPTIVE_FILE).is_file():
            try:
                looks = Looks.model_validate_json(read_bytes(file)).looks
            except ValidationError as error:
                remedy = (
                    "restore it, or start `svp run --until answered` again, which writes it anew; "
                    "what that did not write, rename"
                )
                raise from_validation(error, file, remedy) from None
            return max((look.looks for look in looks), default=1)
    return 1
