"""Intervals and paired differences against what is known of normal data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.stats import (
    Interval,
    mean_interval,
    paired,
    ratio,
)

# 97.5 % quantiles of Student's t for n - 1 degrees of freedom
STUDENT = {10: 2.262, 40: 2.023, 400: 1.966}


@pytest.mark.parametrize("n", [40, 400])
def test_normal_data_give_the_textbook_interval(n: int) -> None:
    x = np.random.default_rng(n).normal(3.0, 2.0, n)
    found = mean_interval(x.tolist())
    half = STUDENT[n] * x.std(ddof=1) / math.sqrt(n)
    assert found.mean == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.12 * half)
    assert found.n == n


@pytest.mark.parametrize(("n", "least", "most"), [(10, 0.90, 0.98), (40, 0.915, 0.985)])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(
    n: int, least: float, most: float, skewed: bool
) -> None:
    rng = np.random.default_rng(5)
    runs, hits = 400, 0
    for i in range(runs):
        x = rng.exponential(1.0, n) if skewed else rng.normal(1.0, 1.0, n)
        hits += mean_interval(x.tolist(), seed=i, resamples=600).contains(1.0)
    assert least - 0.03 * skewed <= hits / runs <= most


def test_the_level_is_obeyed() -> None:
    x = np.random.default_rng(0).normal(size=100).tolist()
    wide, narrow = mean_interval(x, level=0.99), mean_interval(x, level=0.5)
    # normal quantiles: 2.576 and 0.674
    assert wide.half / narrow.half == pytest.approx(2.626 / 0.677, rel=0.12)


def test_skewed_data_reach_further_on_the_long_side() -> None:
    x = np.random.default_rng(0).exponential(size=15).tolist()
    found = mean_interval(x)
    assert found.high - found.mean > 1.2 * (found.mean - found.low)


def test_same_seed_same_bits_and_order_does_not_matter_much() -> None:
    x = np.random.default_rng(0).normal(size=30).tolist()
    assert mean_interval(x, seed=3) == mean_interval(x, seed=3)
    assert mean_interval(x, seed=3) != mean_interval(x, seed=4)
    assert mean_interval(x[::-1]).low == pytest.approx(mean_interval(x).low, abs=0.02)


def test_resampling_in_parts_is_the_same_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=50).tolist()
    whole = mean_interval(x)
    monkeypatch.setattr("benchmarks.stats._AT_ONCE", 50 * 700)
    parts = mean_interval(x)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=1e-12)


def test_few_equal_and_missing_values() -> None:
    assert mean_interval([]).n == 0 and math.isnan(mean_interval([]).mean)
    one = mean_interval([2.0])
    assert one.mean == 2.0 and math.isnan(one.low) and one.n == 1
    assert mean_interval([4.0] * 7) == Interval(4.0, 4.0, 4.0, 7)
    gaps = mean_interval([1.0, math.nan, 3.0, math.inf])
    assert gaps.mean == 2.0 and gaps.n == 2


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_an_impossible_level_is_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        mean_interval([1.0, 2.0], level=level)
    with pytest.raises(ValueError, match="resamples"):
        mean_interval([1.0, 2.0], resamples=10)


def test_pairing_sees_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(2)
    hard = rng.uniform(0, 100, 60)  # how hard each drag is
    a = {i: v for i, v in enumerate(hard)}
    b = {i: v - 1 + rng.normal(0, 0.5) for i, v in enumerate(hard)}
    alone_a, alone_b = mean_interval(list(a.values())), mean_interval(list(b.values()))
    assert alone_a.low < alone_b.mean < alone_a.high
    found = paired(a, b)
    assert found.beyond
    assert found.difference.mean == pytest.approx(-1, abs=0.2)
    assert found.verdict(lower_is_better=True) == "better"
    assert found.verdict(lower_is_better=False) == "worse"


def test_noise_is_called_noise() -> None:
    false_alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a = dict(enumerate(rng.normal(size=40)))
        b = dict(enumerate(rng.normal(size=40)))
        false_alarms += paired(a, b, resamples=600).beyond
    assert 1 <= false_alarms <= 22  # 5 % of 200, four standard errors either way


def test_only_common_finite_drags_count() -> None:
    a = {"x": 1.0, "y": 2.0, "z": math.nan, "only a": 9.0}
    b = {"x": 2.0, "y": 4.0, "z": 1.0, "only b": 9.0}
    found = paired(a, b)
    assert (found.a, found.b, found.difference.n) == (1.5, 3.0, 2)
    assert paired({"x": 1.0}, {"x": 2.0}).verdict(lower_is_better=True) == "too few"
    assert paired({"x": 1.0}, {"y": 2.0}).difference.n == 0


def test_ratio_of_means_is_paired() -> None:
    rng = np.random.default_rng(0)
    a = {i: float(v) for i, v in enumerate(rng.exponential(10, 60))}
    half = {k: v / 2 for k, v in a.items()}
    exact = ratio(a, half)
    assert exact.mean == pytest.approx(0.5)
    assert exact.low == pytest.approx(0.5) and exact.high == pytest.approx(0.5)
    noisy = {k: v * float(rng.uniform(0.2, 0.8)) for k, v in a.items()}
    found = ratio(a, noisy)
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(0.5, abs=0.1) and found.half < 0.1
    assert found == ratio(a, noisy)


def test_ratio_needs_drags_in_common_and_something_to_divide_by() -> None:
    assert math.isnan(ratio({1: 1.0}, {2: 1.0}).mean)
    assert math.isnan(ratio({1: 0.0, 2: 0.0}, {1: 1.0, 2: 2.0}).mean)
    one = ratio({1: 4.0, 2: math.nan}, {1: 1.0, 2: 1.0})
    assert (one.mean, one.n) == (0.25, 1) and math.isnan(one.low)


def test_few_values_have_a_mean_and_no_interval() -> None:
    found = mean_interval([1.0, 2.0, 3.0, 6.0])
    assert found.mean == 3 and found.n == 4 and math.isnan(found.low) and math.isnan(found.high)
    four = {i: float(i) for i in range(4)}
    assert paired(four, four).verdict(lower_is_better=True) == "too few"
