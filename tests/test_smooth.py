"""The 1 euro filter: signals whose answer is known."""

import math

import numpy as np
import pytest

from fastpose.skeleton import LSP14
from fastpose.smooth import OneEuro
from fastpose.types import People

FPS, K = 30.0, 14
SIDE = 100.0  # of everybody's box, so that a person's size is 100 pixels


def people(points, ids, scores=0.9):
    """People whose joints all lie at one point each: points [N, 2] or [N, K, 2]."""
    points = np.asarray(points, np.float32)
    if points.ndim == 2:
        points = np.repeat(points[:, None], K, axis=1)
    n = len(points)
    return People(
        np.tile(np.array([0, 0, SIDE, SIDE], np.float32), (n, 1)),
        np.ones(n, np.float32),
        points,
        np.broadcast_to(np.float32(scores), (n, K)).copy(),
        LSP14,
        np.array(ids, np.int64),
    )


def run(signal, times, smoother=None, scores=0.9):
    """One person's filtered x over time."""
    smoother = smoother or OneEuro()
    return np.array(
        [
            smoother.smooth(people([(x, 50)], [7], scores), t).keypoints[0, 0, 0]
            for x, t in zip(signal, times, strict=True)
        ]
    )


def one_euro(signal, times, min_cutoff, beta, speed_cutoff):
    """The filter as the paper's algorithm writes it, for one number."""

    def alpha(cutoff, passed):
        return 1 / (1 + 1 / (2 * math.pi * cutoff) / passed)

    value, speed, out = signal[0], 0.0, [signal[0]]
    for x, passed in zip(signal[1:], np.diff(times), strict=True):
        a = alpha(speed_cutoff, passed)
        speed = a * (x - value) / passed + (1 - a) * speed
        a = alpha(min_cutoff + beta * abs(speed), passed)
        value = a * x + (1 - a) * value
        out.append(value)
    return np.array(out)


@pytest.mark.parametrize("irregular", [False, True])
def test_equals_the_published_algorithm(irregular):
    rng = np.random.default_rng(0)
    steps = rng.uniform(0.005, 0.1, 80) if irregular else np.full(80, 1 / FPS)
    times = np.concatenate(([0.0], np.cumsum(steps)))
    signal = 50 + 30 * np.sin(times * 4) + rng.normal(0, 1, 81)
    expected = one_euro(signal, times, 1.3, 5.0 / SIDE, 0.8)
    actual = run(signal, times, OneEuro(min_cutoff=1.3, beta=5.0, speed_cutoff=0.8))
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_a_constant_stays_what_it_is():
    times = np.cumsum(np.random.default_rng(1).uniform(0.001, 0.2, 50))
    np.testing.assert_array_equal(run(np.full(50, 33.25), times), np.full(50, 33.25, np.float32))


def test_noise_round_a_still_joint_falls_to_less_than_half():
    noise = np.random.default_rng(2).normal(0, 1, 600)
    filtered = run(100 + noise, np.arange(600) / FPS)
    assert filtered[60:].std() < 0.5 * noise.std()
    assert abs(filtered[60:].mean() - 100) < 0.2


def test_a_fast_joint_lags_less_than_a_slow_filter_would():
    times = np.arange(60) / FPS
    signal = 200 * times  # two sizes a second
    lag = (signal - run(signal, times))[-1] / 200
    assert 0 < lag < 0.03  # seconds; at rest the filter's would be 0.16
    assert (signal - run(signal, times, OneEuro(beta=0.0)))[-1] / 200 > 0.1


def test_a_step_is_followed_within_a_fifth_of_a_second():
    times = np.arange(60) / FPS
    signal = np.where(times < 1, 0.0, 50.0)
    filtered = run(signal, times)
    assert (filtered <= 50 + 1e-3).all()  # no overshoot
    assert filtered[np.searchsorted(times, 1.2)] > 45


def test_a_doubtful_joint_counts_less():
    times = np.arange(30) / FPS
    signal = np.where(times < 0.5, 0.0, 10.0)
    sure, doubtful = run(signal, times), run(signal, times, scores=0.05)
    assert doubtful[16] < 0.5 * sure[16]
    np.testing.assert_allclose(run(signal, times, scores=0.3), sure)  # from `sure` on no difference


def test_nan_joints_neither_poison_nor_reset():
    smoother, plain = OneEuro(), OneEuro()
    noise = np.random.default_rng(3).normal(0, 2, (40, K, 2))
    for i in range(40):
        points = (50 + noise[i])[None]
        broken = points.copy()
        if 10 <= i < 15:
            broken[0, 4] = np.nan
        expected = plain.smooth(people(points, [1]), i / FPS).keypoints[0]
        actual = smoother.smooth(people(broken, [1]), i / FPS).keypoints[0]
        others = np.arange(K) != 4
        np.testing.assert_array_equal(actual[others], expected[others])
        assert np.isnan(actual[4]).all() == (10 <= i < 15)
        if i == 15:  # goes on from what it knew: nearer to that than the measurement is
            assert np.abs(actual[4] - 50).max() < np.abs(points[0, 4] - 50).max()


def test_a_joint_that_starts_as_nan_starts_when_it_comes():
    smoother = OneEuro()
    points = np.full((1, K, 2), 50.0)
    points[0, 4] = np.nan
    smoother.smooth(people(points, [1]), 0.0)
    points[0, 4] = 20.0
    np.testing.assert_array_equal(smoother.smooth(people(points, [1]), 0.1).keypoints, points)


def test_ids_are_filtered_apart_in_any_order():
    a, b = OneEuro(), OneEuro()
    rng = np.random.default_rng(4)
    for i in range(20):
        points = rng.normal((50, 150), 3, (3, 2))
        together = a.smooth(people(points, [9, 2, 5]), i / FPS)
        order = rng.permutation(3)
        shuffled = b.smooth(people(points[order], np.array([9, 2, 5])[order]), i / FPS)
        np.testing.assert_array_equal(shuffled.keypoints, together.keypoints[order])
        np.testing.assert_array_equal(together.ids, [9, 2, 5])


def test_an_id_goes_on_after_a_short_absence_and_is_forgotten_after_a_long_one():
    for away, goes_on in ((0.5, True), (1.5, False)):
        smoother = OneEuro(max_gap=1.0)
        both = people([(0, 0), (5, 5)], [1, 2])
        smoother.smooth(both, 0.0)
        smoother.smooth(both[[]], away / 2)
        smoother.smooth(both[1], away - 0.01)
        x = smoother.smooth(people([(10, 0)], [1]), away).keypoints[0, 0, 0]
        assert (x < 10) == goes_on


def test_memory_is_bounded():
    smoother = OneEuro(max_gap=0.5)
    for i in range(200):
        smoother.smooth(people([(1, 1), (2, 2)], [2 * i, 2 * i + 1]), i / FPS)
    assert len(smoother._state.ids) <= 2 * (0.5 * FPS + 2)


def test_an_equal_time_gives_the_answer_before():
    smoother = OneEuro()
    smoother.smooth(people([(10, 10)], [1]), 0.0)
    again = smoother.smooth(people([(90, 90)], [1]), 0.0)
    np.testing.assert_array_equal(again.keypoints[0, 0], [10, 10])


def test_bad_input_is_refused():
    smoother = OneEuro()
    smoother.smooth(people([(10, 10)], [1]), 1.0)
    with pytest.raises(ValueError, match=r"backwards, got 0.0 after 1.0"):
        smoother.smooth(people([(10, 10)], [1]), 0.0)
    with pytest.raises(ValueError, match="track them first"):
        smoother.smooth(People.empty(LSP14), 2.0)
    with pytest.raises(ValueError, match="ids must differ"):
        smoother.smooth(people([(1, 1), (2, 2)], [3, 3]), 2.0)
    with pytest.raises(ValueError, match="positive"):
        OneEuro(min_cutoff=0)
