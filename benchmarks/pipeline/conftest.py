"""What the benchmarks of the whole path share: a video, threads for all alike, models in int8."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clips import people, write_video
from suite import ROOT

from fastpose import build_engine
from fastpose.fixtures import PICTURES
from fastpose.machine import package_version
from fastpose.ops import cpp, set_num_threads

STREET = "street_multi_person.avi"
SIZE = (720, 1280)  # (h, w) of the drawn clip in pixels, as that of the street
FRAMES = 25
KEPT = ROOT / "benchmarks" / ".cache"


@pytest.fixture(scope="session")
def threads() -> int:
    """As many as there are cores: for the networks of all sides."""
    return len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _kernels_on_as_many(threads: int) -> Iterator[None]:
    before = cpp.get_num_threads()
    set_num_threads(threads)
    yield
    set_num_threads(before)


@pytest.fixture(scope="session")
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A street with people from the data sets, else a clip that is made of the built-in pictures.

    Its name, which rows carry, tells which.
    """
    given = request.config.getoption("--data-dir")
    street = Path(given or "", "video", STREET)
    if given and street.is_file():
        return street
    path = tmp_path_factory.mktemp("clip") / "generated.mp4"
    write_video(path, FRAMES, people(SIZE), SIZE)
    return path


@pytest.fixture(scope="session")
def int8(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A model in int8, given its name: calibrated once, and kept.

    With the training pictures of LSP, or the built-in ones. A network with random weights has
    nothing that it could be verified with, and the default one is over its bounds with some
    pictures: hence `allow`.
    """
    given = request.config.getoption("--data-dir")
    leeds = Path(given or "", "lsp")
    calibration, name = (f"lsp:{leeds}", "lsp") if given and leeds.is_dir() else (PICTURES, "own")
    few = tmp_path_factory.mktemp("few")  # pictures to verify it with
    shutil.copy(PICTURES / "astronaut.jpg", few)

    def build(model: str) -> Path:
        if package_version("nncf") is None:
            pytest.skip("int8 needs NNCF: fastpose-inference[quantize]")
        made_by = "-".join(str(package_version(p)) for p in ("openvino", "nncf"))
        path = KEPT / f"{model}-{name}-{made_by}.xml"
        if not path.with_suffix(".json").is_file():
            KEPT.mkdir(exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of random weights
                build_engine(
                    model,
                    precision="int8",
                    calibration=calibration,
                    images=few,
                    allow=True,
                    out=path,
                )
        return path

    return build
