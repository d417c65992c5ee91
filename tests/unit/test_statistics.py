# SPDX-License-Identifier: Apache-2.0
"""Differences of two readings of Triton's statistics."""

from ensemblekit.clients.grpc import ModelStatistics, time_by_step


def test_time_by_step_is_the_mean_of_the_requests_between_two_readings() -> None:
    before = {"a": ModelStatistics(1, 9.0), "ensemble": ModelStatistics(1, 9.0)}
    after = {"a": ModelStatistics(3, 9.4), "ensemble": ModelStatistics(3, 11.0)}

    steps = time_by_step(before, after)

    assert round(steps["a"], 6) == 0.2
    assert round(sum(steps.values()), 6) == 1.0


def test_time_by_step_that_counts_more_than_the_whole_leaves_nothing_for_generating() -> None:
    before = {"a": ModelStatistics(0, 0.0), "ensemble": ModelStatistics(0, 0.0)}
    after = {"a": ModelStatistics(1, 0.4), "ensemble": ModelStatistics(1, 0.3)}

    assert time_by_step(before, after)["generating"] == 0.0


def test_time_by_step_of_another_ensemble_leaves_out_models_that_were_not_asked() -> None:
    before = {"a": ModelStatistics(0, 0.0), "b": ModelStatistics(2, 1.0), "other": ModelStatistics(0, 0.0)}
    after = before | {"a": ModelStatistics(1, 0.2), "other": ModelStatistics(1, 0.5)}

    assert time_by_step(before, after, "other") == {"a": 0.2, "generating": 0.3}
