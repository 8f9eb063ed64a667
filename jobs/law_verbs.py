"""The verbs `report`, `fit` and `plan`: what was measured, what more training would gain, and what it costs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from jobs.terminal import say

if TYPE_CHECKING:
    from jobs.flags import Call


def report_verb(call: Call) -> Any:
    from jobs.config import ReportConfig

    config = call.config(ReportConfig, "runs")
    from jobs.report import scaling

    result = scaling.run(config)
    for problem in result.problems:
        say(f"xtra report: {problem}", file=sys.stderr)
    if config.text:
        say("\n".join(result.text))
        return result
    say(f"{result.runs} runs, {result.rows} rows: {result.report}")
    return result


def fit_verb(call: Call) -> Any:
    from jobs.laws import Config

    config = call.config(Config, "ledger")
    if config.published:
        return _published()
    if config.power:
        return _power(config)
    from jobs.laws import fit, fit_text

    result = fit.run(config)
    say("\n".join(fit_text.lines(result, config.at)))
    return result.as_json()


def _published() -> Any:
    from jobs.report import published

    say("\n".join(published.figure_1_lines()))
    ours, *others = published.FIGURE_1
    return {"rows": published.FIGURE_1, "multipliers": [published.efficiency(ours, other) for other in others]}


def _power(config: Any) -> Any:
    return power(config.seeds, config.sd, config.arms, config.comparisons)


def power(seeds: int, sd: float, arms: int, comparisons: int = 1) -> dict[str, Any]:
    """Print the difference that a design can detect. Raises ValueError for an impossible design."""
    from jobs.laws import statistics

    found = statistics.detectable_difference(seeds, sd, arms, comparisons)
    what = "the primary comparison" if comparisons == 1 else f"one of {comparisons} Holm-adjusted"
    say(
        f"{seeds} seeds an arm, {sd:g} points between seeds, variance of {arms} arms: {what}\n"
        f"finds a true difference of {found:.2f} points in 80 % of studies, at 5 % false claims."
    )
    return {"seeds": seeds, "sd": sd, "arms": arms, "detectable": found}


def plan_verb(call: Call) -> Any:
    from jobs.lab import PlanConfig

    config = call.config(PlanConfig, "recipe")
    from jobs.lab import plan

    result = plan.run(config)
    say("\n".join(plan.lines(result)))
    return {**vars(result), "total": result.total}
