"""What a run of the suite found, fit to be sent to strangers."""

from __future__ import annotations

import getpass
import re
import socket
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Row:
    """One check.

    Attributes:
        name: of the check, as in `CHECKS`.
        outcome: "passed", "failed" or "skipped".
        detail: what was found, or the reason, in one line.
        seconds: how long it took.
        traceback: of an error that the check did not expect; else "".
    """

    name: str
    outcome: str
    detail: str
    seconds: float
    traceback: str = ""


@dataclass
class Report:
    """All checks of one engine.

    Attributes:
        machine: facts of the machine, without names of people, hosts or folders.
        versions: of the packages that matter here, by distribution.
        kind, model, precision, device: what was examined.
        full: with the large numbers of runs.
        rows: the checks, in the order in which they ran.
        running: the check that is being made, so that what a crash leaves behind names it.
        interrupted: Ctrl-C ended it early.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    kind: str
    model: str
    precision: str
    device: str
    full: bool
    rows: list[Row] = field(default_factory=list)
    running: str = ""
    interrupted: bool = False

    def count(self, outcome: str) -> int:
        """The checks that ended so."""
        return sum(row.outcome == outcome for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class Anonymous:
    """Takes out of texts what tells who ran the suite, and where.

    Args:
        folder: the suite's own.
    """

    def __init__(self, folder: Path) -> None:
        places = {
            folder: "FOLDER",
            Path(tempfile.gettempdir()): "TEMPORARY",
            Path(sys.prefix): "PYTHON",
            Path(sys.base_prefix): "PYTHON",
            Path(__file__).parents[2]: "INSTALLED",
        }
        home = _home()
        # a home that is the root of the file system, as some containers have it, tells nothing
        if home is not None and len(home.parts) > 1:
            places[home] = "~"
        names = {str(form): name for path, name in places.items() for form in _forms(path)}
        # the longest first: one may lie in another
        self._places = sorted(names.items(), key=lambda item: -len(item[0]))
        self._people = {_host(): "HOST", _user(): "USER"}

    def __call__(self, text: str) -> str:
        """The text without paths of this machine and names of its user and host."""
        for place, name in self._places:
            text = re.sub(rf"{re.escape(place)}(?![\w.-])", name, text)
        text = re.sub(r"/(home|Users)/[^/\s'\":,;]+", "~", text)
        for person, name in self._people.items():
            if person:
                text = re.sub(rf"(?<!\w){re.escape(person)}(?!\w)", name, text)
        return text

    def values(self, value: Any) -> Any:
        """Plain values with every text in them so treated; keys are ours and stay."""
        match value:
            case str():
                return self(value)
            case dict():
                return {key: self.values(item) for key, item in value.items()}
            case list() | tuple():
                return [self.values(item) for item in value]
            case _:
                return value


def _forms(path: Path) -> set[Path]:
    """A path as it is written, and as it really is."""
    return {path, path.resolve()}


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # a user whom the system does not know
        return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the same
        return ""


def _host() -> str:
    return socket.gethostname().partition(".")[0]
