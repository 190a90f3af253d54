"""Whether a search that came to its end has anything to show for it."""

from __future__ import annotations

from collections.abc import Iterable

from kdnas.core.words import commonest, counted
from kdnas.record.records import RunRecord


def failure(run: RunRecord) -> str:
    """Return why `run` has failed, empty where it has not: none of its trials, or of its retrainings, gave a score.

    Trials that a constraint refused after measuring gave none either.
    """
    if not any(trial.state == "complete" for trial in run.trials):
        lost = [trial for trial in run.trials if trial.state in ("failed", "infeasible")]
        if not lost:
            return ""
        what = f"no student was scored: {counted(len(lost), 'trial')} failed or broke a constraint"
        go_on = "they count as spent: what is mended goes on with a larger budget, or in another --out"
        return f"{what}{most_often(trial.reason for trial in lost)}; {go_on}"
    failed = run.failed_repeats
    if failed and not any(trial.repeats for trial in run.trials):
        reasons = (repeat.reason for repeat in failed for _ in range(repeat.attempts))
        return f"every retraining of the front failed{most_often(reasons)}; the front shown is of brief scores alone"
    return ""


def most_often(reasons: Iterable[str]) -> str:
    """Return the commonest of `reasons` in words that end a sentence, and its share of them."""
    given = [reason or "no reason was given" for reason in reasons]
    reason, times = commonest(given)
    return f", {'all' if times == len(given) else 'most'} for this reason ({times} of {len(given)}): {reason}"
