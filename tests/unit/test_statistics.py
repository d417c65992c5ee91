# SPDX-License-Identifier: Apache-2.0
"""Differences of two readings of Triton's statistics."""

from ensemblekit.clients.statistics import ModelStatistics, time_by_step


def _row(model: str, requests: int, total_s: float) -> ModelStatistics:
    return ModelStatistics(model, requests, total_s, 0.0, 0.0, total_s, 0.0)


def test_time_by_step_is_the_mean_of_the_requests_between_two_readings() -> None:
    before = {"a": _row("a", 1, 9.0), "ensemble": _row("ensemble", 1, 9.0)}
    after = {"a": _row("a", 3, 9.4), "ensemble": _row("ensemble", 3, 11.0)}

    steps = time_by_step(before, after)

    assert round(steps["a"], 6) == 0.2
    assert round(sum(steps.values()), 6) == 1.0


def test_time_by_step_that_counts_more_than_the_whole_leaves_nothing_for_generating() -> None:
    before = {"a": _row("a", 0, 0.0), "ensemble": _row("ensemble", 0, 0.0)}
    after = {"a": _row("a", 1, 0.4), "ensemble": _row("ensemble", 1, 0.3)}

    assert time_by_step(before, after)["generating"] == 0.0
