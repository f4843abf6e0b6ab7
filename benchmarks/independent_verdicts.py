"""How often `svp answer` is wrong, by its rules written anew from docs/verdicts.md.

Nothing of the package is used, so that a fault of it would show.

    python benchmarks/independent_verdicts.py [--studies 10000]

Prints how often any verdict of an answer is wrong: the worst of 24 designs (four leads, three
noises, training that was long enough or not), and of leads that are none early and on a bound
later; beside it what it was while such leads were thought impossible.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from scipy import stats

ALPHA = 0.05 * 0.95  # 5 % of the error is left for what the noise's shape costs
MARGIN = 0.5
LEAST_SD = 0.1
CLAIMS = ("early", "at", "end")
LATE = ((0, 0.5, 0.5), (0, 0.5, 0), (0, 0.5, 0.25), (0, 0.25, 0.5))


def true_together(late: bool) -> set[frozenset]:
    """Returns which null hypotheses, (claim, verdict that would be wrong), can be true at once."""
    found = set()
    for early, at in itertools.product(("yes", "no", None), repeat=2):
        if (early, at) == ("yes", "no") and not late:
            continue
        # Of training that is too short, both verdicts about the end are wrong.
        for end in ((), ("yes",), ("no",), ("yes", "no")):
            nulls = [("early", early), ("at", at), *(("end", one) for one in end)]
            found.add(frozenset(null for null in nulls if null[1]))
    return found - {frozenset()}


def p_value(values: np.ndarray, bound: float, verdict: str) -> np.ndarray:
    """Returns the one-sided t test's p value that a mean over the last axis is beyond a bound."""
    n = values.shape[-1]
    error = np.maximum(values.std(-1, ddof=1), LEAST_SD / np.sqrt(6)) / np.sqrt(n)
    t = (values.mean(-1) - bound) / error
    return stats.t.sf(t, n - 1) if verdict == "yes" else stats.t.cdf(t, n - 1)


def wrong(leads, gain, seeds, noise, studies, late, seed=9) -> float:
    """Returns the share of simulated studies of which any verdict is wrong."""
    draw = np.random.default_rng(seed).standard_normal
    scratch, other = (
        np.array([25, 40, 40 + gain])
        + arm * np.array(leads)
        + noise * np.sqrt(0.5) * (draw((studies, seeds, 1)) + draw((studies, seeds, 3)))
        for arm in (0, 1)
    )
    lead = other - scratch
    p = {
        (claim, verdict): p_value(lead[..., k], bound, verdict)
        for k, claim in enumerate(CLAIMS)
        for verdict, bound in (("yes", 0.0), ("no", MARGIN))
    }
    ours, theirs, change = (x[..., 2] - x[..., 1] for x in (scratch, other, lead))
    p["end", "yes"] = np.maximum(p["end", "yes"], p_value(ours, MARGIN, "no"))
    ways = np.minimum(p_value(theirs, MARGIN, "no"), p_value(change, 0.0, "no"))
    p["end", "no"] = np.maximum(p["end", "no"], np.minimum(2 * ways, 1.0))
    rejected = {
        nulls: len(nulls) * np.min([p[null] for null in nulls], axis=0) <= ALPHA
        for nulls in true_together(late)
    }
    bad = np.zeros(studies, bool)
    for claim, true in zip(CLAIMS, leads, strict=True):
        short = claim == "end" and gain >= MARGIN
        for verdict, false in (("yes", true <= 0), ("no", true >= MARGIN)):
            if false or short:
                null = claim, verdict
                bad |= np.all([is_ for nulls, is_ in rejected.items() if null in nulls], axis=0)
    return float(100 * bad.mean())


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=10_000, help="of each design")
    studies = parser.parse_args().studies
    designs = list(itertools.product((0, 0.25, 0.5, 1.5), (0.2, 1.0, 3.0), (0.0, 0.5)))
    for seeds in (3, 5, 10):
        same = max(wrong((g,) * 3, gain, seeds, sd, studies, True) for g, sd, gain in designs)
        now, before = (
            max(wrong(lead, 0.0, seeds, sd, studies, late) for lead in LATE for sd in (0.05, 0.2))
            for late in (True, False)
        )
        print(
            f"{seeds:2} seeds: worst of {len(designs)} designs {same:.1f} %, of late leads "
            f"{now:.1f} %, without the order of all leads {before:.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
