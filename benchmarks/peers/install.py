"""Environments for the peers that pin other packages than we do, one each.

    python benchmarks/peers/install.py [--force] [NAME ...]

Each is a virtual environment in benchmarks/peers/env/NAME with what requirements-NAME.txt pins, got
by pip as it is set up here. One that is ready stays as it is; --force builds it again. Prints one
line a peer and exits with 0 if all are ready.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
LONGEST = 1200  # seconds that pip may take


@dataclass(frozen=True)
class Environment:
    """A peer's own packages.

    Attributes:
        name: of the peer, its requirements and its folder.
        imports: what must be importable in it.
        pythons: the oldest and the newest Python that has wheels of it.
        folder: in which the environments lie.
        requirements: the file with its pins.
    """

    name: str
    imports: tuple[str, ...]
    pythons: tuple[tuple[int, int], tuple[int, int]]
    folder: Path = FOLDER / "env"
    requirements: Path = Path()

    def __post_init__(self) -> None:
        if self.requirements == Path():
            file = FOLDER / f"requirements-{self.name}.txt"
            object.__setattr__(self, "requirements", file)

    @property
    def home(self) -> Path:
        """The folder of the virtual environment."""
        return self.folder / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.home / "bin" / "python"

    @property
    def marker(self) -> Path:
        """A file that is written when all else is there: the hash of the pins."""
        return self.home / "ready"

    @property
    def hash(self) -> str:
        """Of the pins."""
        return hashlib.sha256(self.requirements.read_bytes()).hexdigest()

    def ready(self) -> bool:
        """Whether it is built to the end, and of these pins."""
        marker = self.marker
        return marker.is_file() and marker.read_text() == self.hash and self.python.exists()


PEERS = {
    peer.name: peer
    for peer in (
        Environment("rtmlib", ("rtmlib", "onnxruntime", "cv2"), ((3, 10), (3, 13))),
        Environment("mediapipe", ("mediapipe", "cv2"), ((3, 9), (3, 12))),
    )
}


class InstallError(Exception):
    """An environment cannot be made."""


def install(peer: Environment, *, force: bool = False) -> None:
    """Make an environment, unless it is ready.

    Args:
        peer: whose.
        force: make it again even so.

    Raises:
        InstallError: why it cannot be made, in one line.
    """
    if peer.ready() and not force:
        return
    python = find_python(peer)
    shutil.rmtree(peer.home, ignore_errors=True)
    _run([python, "-m", "venv", peer.home], "venv")
    pip = [peer.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--only-binary", ":all:", "-r", peer.requirements], "pip")
    _run([peer.python, "-c", f"import {', '.join(peer.imports)}"], "import")
    peer.marker.write_text(peer.hash)


def find_python(peer: Environment) -> str:
    """An interpreter that has wheels of the peer: this one, else the newest on the path.

    Raises:
        InstallError: there is none.
    """
    oldest, newest = peer.pythons
    minors = range(newest[1], oldest[1] - 1, -1)
    for found in (sys.executable, *(shutil.which(f"python3.{minor}") for minor in minors)):
        if found and oldest <= version_of(found) <= newest:
            return found
    span = f"{'.'.join(map(str, oldest))} to {'.'.join(map(str, newest))}"
    raise InstallError(f"needs a Python of {span}, found none on the path")


@functools.cache
def version_of(python: str) -> tuple[int, int]:
    """(major, minor) of an interpreter that has venv, else (0, 0)."""
    words = [python, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        major, minor = map(int, done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return 0, 0
    return major, minor


def _run(words: list[object], what: str) -> None:
    try:
        done = subprocess.run(
            [str(word) for word in words], capture_output=True, text=True, timeout=LONGEST
        )
    except subprocess.TimeoutExpired:
        raise InstallError(f"{what} took longer than {LONGEST} s") from None
    except OSError as error:
        raise InstallError(f"{what}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        errors = [line for line in said if line.startswith("ERROR: ")] or said
        raise InstallError(f"{what} ended with {done.returncode}: {errors[-1]}")


def size_mb(folder: Path) -> float:
    """Megabytes of all files in a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6


def main(words: list[str] | None = None) -> int:
    """The command; 0 if all environments are ready."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help=f"of {', '.join(PEERS)}; all without one")
    parser.add_argument("--force", action="store_true", help="build again what is ready")
    args = parser.parse_args(words)
    if unknown := sorted(set(args.name) - set(PEERS)):
        parser.error(f"no environment is known for {', '.join(unknown)}")
    failed = False
    for name in args.name or PEERS:
        peer = PEERS[name]
        try:
            install(peer, force=args.force)
        except InstallError as error:
            print(f"{name}: not ready: {error}", flush=True)
            failed = True
        else:
            print(f"{name}: ready, {size_mb(peer.home):.0f} MB", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
