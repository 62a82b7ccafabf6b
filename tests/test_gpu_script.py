"""A machine with a GPU may have little else: what is marked `gpu` must be found there, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]
ABSENT = (
    "openvino", "onnx", "onnxruntime", "onnxscript", "safetensors", "scipy", "sklearn", "pyarrow",
    "av", "faster_coco_eval", "xdist",
)  # fmt: skip


def test_gpu_tests_are_found_with_torch_pytest_and_opencv_alone():
    code = (
        "import sys, pytest\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        "sys.exit(pytest.main(['tests', '-m', 'gpu', '--collect-only', '-q', '-p', 'no:xdist']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for file in ("models/test_models.py", "ops/test_warp.py", "test_detector_cuda.py"):
        assert f"tests/{file}: " in done.stdout
