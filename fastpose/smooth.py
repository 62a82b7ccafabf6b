"""Joints over time: jitter is taken out as they come, with little lag."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fastpose.types import Floats, People


@dataclass(frozen=True)
class _State:
    """Filters of T people and K joints; rows of all arrays go together, ids ascending."""

    ids: npt.NDArray[np.int64]  # [T]
    seen: npt.NDArray[np.float64]  # [T] when the person was last there, seconds
    points: Floats  # [T, K, 2] filtered, NaN before the first measurement
    speeds: Floats  # [T, K, 2] filtered, pixels a second
    times: npt.NDArray[np.float64]  # [T, K] when the joint was last measured


class OneEuro:
    """The 1 euro filter, for every joint of every id.

    A low-pass filter whose cut-off frequency grows with the speed of what it filters: still joints
    do not jitter, fast ones do not lag (Casiez, Roussel and Vogel, 1 Euro Filter: A Simple
    Speed-based Low-pass Filter for Noisy Input in Interactive Systems, CHI 2012). Beyond the paper:

    - speed is the length of the velocity (x, y) in person's sizes (square root of the box's area) a
      second, so that the settings fit any resolution and the answer does not turn with the axes;
    - the cut-off shrinks in proportion where a joint's score is below `sure`, to a tenth at most.

    A joint that is NaN stays NaN, and its filter waits: the longer, the more the next measurement
    counts. An id that was not there for `max_gap` seconds is forgotten.

    Args:
        min_cutoff: Hz, for a joint at rest; less takes out more jitter.
        beta: Hz per person's size a second; more lags less.
        speed_cutoff: Hz, for the speed itself.
        sure: score of a joint from which on it is trusted in full.
        max_gap: seconds.

    Raises:
        ValueError: a number is not positive (`beta` may be 0).
    """

    def __init__(
        self,
        *,
        min_cutoff: float = 1.0,
        beta: float = 5.0,
        speed_cutoff: float = 1.0,
        sure: float = 0.3,
        max_gap: float = 1.0,
    ) -> None:
        if not (min(min_cutoff, speed_cutoff, sure, max_gap) > 0 and beta >= 0):
            raise ValueError(
                "min_cutoff, speed_cutoff, sure and max_gap must be positive, beta not negative, "
                f"got {min_cutoff}, {speed_cutoff}, {sure}, {max_gap}, {beta}"
            )
        self._min_cutoff, self._beta, self._speed_cutoff = min_cutoff, beta, speed_cutoff
        self._sure, self._max_gap = sure, max_gap
        self._state: _State | None = None
        self._time = -math.inf

    def smooth(self, people: People, time: float) -> People:
        """The same people with filtered joints; scores, boxes and ids stay.

        Args:
            people: of the next frame, with ids.
            time: of the frame, seconds; never less than at the call before. At an equal time the
                answer is the one before.

        Raises:
            ValueError: there are no ids, or one comes twice; `time` is not a number or goes
                backwards; the number of joints changes.
        """
        if people.ids is None:
            raise ValueError("people must have ids; track them first")
        if len(np.unique(people.ids)) != len(people):
            raise ValueError(f"ids must differ, got {people.ids.tolist()}")
        if not time >= self._time:  # NaN, too
            raise ValueError(f"time must not go backwards, got {time} after {self._time}")
        before = self._recall(people.ids, people.scores.shape[1])
        now = self._step(before, people, time)
        self._remember(now, time)
        self._time = time
        measured = np.isfinite(people.keypoints).all(axis=2, keepdims=True)
        return replace(people, keypoints=np.where(measured, now.points, np.float32(np.nan)))

    def _recall(self, ids: npt.NDArray[np.int64], joints: int) -> _State:
        """The filters of these ids, in their order; new ones know nothing."""
        n = len(ids)
        state = _State(
            ids,
            np.full(n, -math.inf),
            np.full((n, joints, 2), np.nan, np.float32),
            np.zeros((n, joints, 2), np.float32),
            np.full((n, joints), -math.inf),
        )
        old = self._state
        if old is None or len(old.ids) == 0:
            return state
        if old.points.shape[1] != joints:
            raise ValueError(f"people must have {old.points.shape[1]} joints, got {joints}")
        place = np.minimum(np.searchsorted(old.ids, ids), len(old.ids) - 1)
        known = old.ids[place] == ids
        for name in ("points", "speeds", "times"):
            getattr(state, name)[known] = getattr(old, name)[place[known]]
        return state

    def _step(self, before: _State, people: People, time: float) -> _State:
        """One step of every filter whose joint is there."""
        measured = np.isfinite(people.keypoints).all(axis=2)
        first = measured & np.isnan(before.points[..., 0])
        goes_on = measured & ~first & (time > before.times)
        passed = np.where(goes_on, time - np.where(goes_on, before.times, 0), 1.0)
        change = np.where(goes_on[..., None], people.keypoints - before.points, 0)
        blend = _blend(self._speed_cutoff, passed)[..., None]
        speeds = before.speeds + blend * (change / passed[..., None] - before.speeds)
        extent = np.maximum(people.boxes[:, 2:] - people.boxes[:, :2], 1e-3)
        size = np.sqrt(extent.prod(axis=1))[:, None]
        trust = np.clip(people.scores / self._sure, 0.1, 1)
        pace = np.hypot(speeds[..., 0], speeds[..., 1]) / size
        cutoff = (self._min_cutoff + self._beta * pace) * trust
        points = before.points + _blend(cutoff, passed)[..., None] * change
        here, new = goes_on[..., None], first[..., None]
        return _State(
            before.ids,
            np.full(len(people), time),
            np.where(here, points, np.where(new, people.keypoints, before.points)).astype(
                np.float32
            ),
            np.where(here, speeds, before.speeds).astype(np.float32),
            np.where(measured, time, before.times),
        )

    def _remember(self, now: _State, time: float) -> None:
        """Keep these filters, and those of ids that were away for a short while."""
        old = self._state or _State(
            now.ids[:0], now.seen[:0], now.points[:0], now.speeds[:0], now.times[:0]
        )
        away = (time - old.seen <= self._max_gap) & ~np.isin(old.ids, now.ids)
        merged = {
            name: np.concatenate((array, getattr(old, name)[away]))
            for name, array in vars(now).items()
        }
        order = np.argsort(merged["ids"])
        self._state = _State(**{name: array[order] for name, array in merged.items()})


def _blend(cutoff: float | npt.NDArray, passed: npt.NDArray) -> npt.NDArray:
    """Weight of a measurement in a first-order low-pass filter, `passed` seconds after the last."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * passed))
