"""A window on the screen (extra `gui`)."""

from __future__ import annotations

import cv2

from fastpose.errors import BackendError
from fastpose.sinks.drawn import DrawnSink
from fastpose.types import Frame, People


class WindowSink(DrawnSink):
    """Shows each frame with the people drawn; q or Escape ends the run as Ctrl-C does.

    Args:
        title: of the window.
        min_score: joints below are not drawn.

    Raises:
        BackendError: this OpenCV, or this machine, has no windows.
    """

    def __init__(self, title: str, *, min_score: float = 0.3) -> None:
        super().__init__(min_score)
        self._title = title
        try:
            cv2.namedWindow(title, cv2.WINDOW_NORMAL)
        except cv2.error:
            raise BackendError(
                "showing a window needs a screen and an OpenCV with windows: install "
                "fastpose-inference[gui] in place of opencv-python-headless"
            ) from None

    def _write(self, frame: Frame, people: People) -> None:
        cv2.imshow(self._title, frame.image)
        if cv2.waitKey(1) & 0xFF in (ord("q"), 27):
            raise KeyboardInterrupt

    def _finish(self) -> None:
        cv2.destroyWindow(self._title)

    def _discard(self) -> None:
        self._finish()
