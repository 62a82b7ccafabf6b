"""Nobody is told that fastpose runs."""

import os
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
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr


def test_onnxruntime_does_not_report(tmp_path):
    pytest.importorskip("onnxruntime")
    code = (
        "import os, fastpose\n"
        "fastpose.Pose(detector='none', engine='onnxruntime').close()\n"
        "assert 'ORT_DISABLE_TELEMETRY' not in os.environ\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    environment.pop("CI", None)  # which it takes for a wish not to be asked
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not list(tmp_path.rglob("deviceid")), "an identity was made up for reports"
