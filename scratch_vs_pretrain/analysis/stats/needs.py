"""Which runs would decide what an answer leaves undecided, and what they cost."""

import math
from dataclasses import dataclass

from scratch_vs_pretrain.analysis.runs import RunRecord
from scratch_vs_pretrain.analysis.stats.contrast import MOST_SEEDS, Lack, end_gate
from scratch_vs_pretrain.analysis.stats.cost import hours_text, mean_hours, on_processors
from scratch_vs_pretrain.analysis.stats.results import Setting
from scratch_vs_pretrain.analysis.stats.verdicts import LEAST_SEEDS, SHUT
from scratch_vs_pretrain.text import counted


@dataclass(frozen=True)
class Need:
    """Runs that would decide a claim."""

    claim: str  # "early", "at" or "end"
    kind: str  # "seeds" (more of them) or "length" (a longer schedule)
    seeds: int | None  # pairs to add, or of the longer schedule; None if more than 100
    iterations: int  # length of the runs
    hours: float  # of all of them together; infinite where the runs do not tell their time
    cpu: bool | None  # the hours are a processor's; None where nobody knows
    lacking: int = 0  # pairs that the present length lacks; of "seeds", as many as these
    begun: int = 0  # of these pairs, those of which an arm has a run, which may be unfinished
    planned: bool = False  # the longer schedule is there to be finished
    of: str = "lead"  # what the seeds tell: the "lead", or the "gain" by longer training

    def text(self, verb: str = "add") -> str:
        """Says it: "add 2 seeds, 0.4 GPU hours"."""
        cost = "" if math.isinf(self.hours) else f", {hours_text(self.hours, self.cpu)}"
        if self.seeds is None:
            zero = ", or to 0" * (self.of == "lead")
            return f"not by {MOST_SEEDS} seeds: the {self.of} is too near to the margin{zero}"
        more, begun = ("more ", 0) if verb != "add" else ("", self.begun)
        finish = [f"{counted(begun, 'seed')} in both arms"] * (begun > 0)
        new = [counted(n, f"{more}seed") for n in [self.lacking - begun] if n]
        if self.kind == "length":
            each = f" for {counted(self.seeds, 'seed')}" * (self.seeds > 1)
            (finish if self.planned else new).append(
                f"a schedule of {self.iterations:,} iterations{each}"
            )
            cost += ", thanks to the shared trunk"
        said = [f"finish {' and '.join(finish)}"] * bool(finish)
        return " and ".join(said + [f"{verb} {' and '.join(new)}"] * bool(new)) + cost


def need_of(setting: Setting, lack: Lack) -> Need:
    """Returns the runs that bring a claim what it lacks."""
    contrast, cpu = setting.contrast, on_processors(setting.runs)
    common, short = contrast.common(), lack.claim != "end" and not lack.longer
    there: list[tuple[RunRecord, ...]] = []  # of each arm, the runs of the length that decides
    for name, curves in zip(setting.arms, contrast.arms, strict=True):
        known = [c.length for c in curves] or [run.iterations for run in setting.of(name)]
        length = (min if short else max)(known)
        if short and common:
            length = common[0][0].length
        there.append(tuple(run for run in setting.of(name) if run.iterations == length))
    longer = lack.longer or (lack.claim == "end" and _one_length(setting))
    if math.isinf(lack.seeds) and not longer:
        return Need(lack.claim, "seeds", None, length, math.inf, cpu, of=lack.of)
    by_seed = [{run.seed: run for run in runs} for runs in there]
    work = [sum(_left(runs.get(seed)) for runs in by_seed) for seed in set().union(*by_seed)]
    seeds = max(LEAST_SEEDS, lack.have) if longer else max(1, int(lack.seeds) - lack.have)
    lacking = max(0, seeds - work.count(0)) if longer else seeds
    begun = sorted(left for left in work if 0 < left < math.inf)[:lacking]
    lost = lacking and (sum(begun) + 2 * (lacking - len(begun)))
    hours = lost * mean_hours(run for runs in there for run in runs) if lost else 0.0
    length = max(run.iterations for runs in there for run in runs)
    if not longer:
        about = (lacking, len(begun), False, lack.of)
        return Need(lack.claim, "seeds", seeds, length, hours, cpu, *about)
    # Twice the longest training: from the first rate drop on, before which they are one run.
    planned = [
        r.iterations for r in setting.runs if r.iterations >= 2 * length and 0 < _left(r) < math.inf
    ]
    length = min(planned, default=2 * length)
    for runs in there:
        share = length - min(runs[0].steps, default=0)
        hours += seeds * share / runs[0].iterations * mean_hours(runs)
    return Need(lack.claim, "length", seeds, length, hours, cpu, lacking, len(begun), bool(planned))


def _one_length(setting: Setting) -> bool:
    """Tells whether no run, finished or not, will show that training was long enough."""
    planned = [{run.iterations for run in setting.of(arm)} for arm in setting.arms]
    return end_gate(setting.contrast) is SHUT and all(2 * min(p) > max(p) for p in planned)


def _left(run: RunRecord | None) -> float:
    """Returns which part of a run is still to be trained; infinite where it is lost."""
    if run is None or run.state == "finished":
        return float(run is None)
    return math.inf if run.state in ("diverged", "failed") else 1 - run.iteration / run.iterations
