"""Every error raised on purpose. Each is also the built-in exception a caller would expect."""

from __future__ import annotations

from typing import Any


class FastposeError(Exception):
    """Base of every error that fastpose raises on purpose; its text is one line for a person."""


class BackendError(FastposeError, RuntimeError):
    """A backend or runtime that was named cannot run here."""


class WeightsError(FastposeError, ValueError):
    """A weight file is missing, damaged, or belongs to another network."""


class ModelError(FastposeError, ValueError):
    """No model has that name, or the model does not fit what is asked of it."""


class EngineError(FastposeError, RuntimeError):
    """An engine cannot be built, loaded or run; the text names the field that differs."""


class UnbuiltError(EngineError, BackendError):
    """An engine has to be built for this machine first, or again; the text says how, or why."""


class UnverifiedError(EngineError):
    """An engine is too far from its module to be written.

    Attributes:
        report: what was found, as a manifest would keep it.
    """

    def __init__(self, text: str, report: dict[str, Any]) -> None:
        super().__init__(text)
        self.report = report


class DetectorError(FastposeError, ValueError):
    """A file is no person detector, or its layout of outputs is not known."""


class DataError(FastposeError, ValueError):
    """An annotation, box or prediction file cannot be used."""


class FrameError(FastposeError, OSError):
    """A picture, video or camera cannot be read."""


class OutputError(FastposeError, OSError):
    """A result cannot be written."""
