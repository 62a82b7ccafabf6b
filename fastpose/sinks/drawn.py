"""A sink of frames that have the people drawn on them."""

from __future__ import annotations

from dataclasses import replace

from fastpose.measure import stage
from fastpose.sinks.files import Sink
from fastpose.sinks.overlay import draw
from fastpose.types import Frame, People


class DrawnSink(Sink):
    """Draws the people, and then writes the drawn frame.

    Args:
        min_score: joints below are not drawn.
    """

    def __init__(self, min_score: float) -> None:
        super().__init__()
        self._min_score = min_score

    def write(self, frame: Frame, people: People) -> None:
        """See `Sink.write`."""
        with stage("draw"):
            drawn = draw(frame.image, people, min_score=self._min_score)
        super().write(replace(frame, image=drawn), people)
