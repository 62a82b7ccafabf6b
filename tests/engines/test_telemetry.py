"""Nobody is told that fastpose runs."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino_telemetry")


@pytest.mark.parametrize(
    "use",
    [
        "import fastpose\nfastpose.Pose(detector='none').close()",
        "from fastpose.cli import main\nmain(['doctor', '--json'])",
    ],
)
def test_openvino_does_not_report(use):
    code = (
        f"{use}\n"
        "import sys\n"
        "assert 'openvino' in sys.modules\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "import openvino_telemetry\n"  # the host program may still use it
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
