"""`fastpose predict PICTURE --engine x.plan` where only numpy, OpenCV, pycuda and tensorrt are.

    python tests/without_torch.py FOLDER

Doubles stand for pycuda and tensorrt, and the device is the host's memory. Run by test_direct.py,
in a Python of its own: no torch, triton, openvino or onnxruntime can be imported in it.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

sys.modules.update(
    dict.fromkeys(("torch", "triton", "openvino", "onnxruntime", "onnx", "cuda", "scipy"))
)
folder = Path(sys.argv[1])
here = Path(__file__).parent
sys.path[:0] = [str(here.parent), str(here), str(here / "engines")]

import cv2  # noqa: E402
import fake_tensorrt  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from device_fakes import Driver, PyCUDA, decode_binary, warp_frames  # noqa: E402

import fastpose.ops.cuda as cuda  # noqa: E402
from fastpose import direct  # noqa: E402
from fastpose.cli import main  # noqa: E402
from fastpose.engines import Options, source  # noqa: E402
from fastpose.engines.engine import Job, Request  # noqa: E402
from fastpose.models import model_spec  # noqa: E402
from fastpose.ops import cubin  # noqa: E402

spec = model_spec("cpn-light")
((channels, *cells),) = spec.results
maps = (channels - spec.background, *cells)
pycuda = PyCUDA().install(pytest.MonkeyPatch())
state = fake_tensorrt.State(
    input=("image", (-1, 3, *spec.size)), outputs={"maps": (-1, channels, *cells)}
)
sys.modules["tensorrt"] = fake_tensorrt.make(state)
binary = decode_binary(maps, channels=channels, radius=5)
driver = Driver(binary, method=spec.method, sigma=spec.sigma, peak_value=spec.peak_value)
cubin._driver = lambda: driver
cuda._C_cuda = SimpleNamespace(warp_frames=warp_frames)
source.find_graph = lambda *given, **named: (folder / "graph.onnx", "")
source.float_graph = lambda graph, out: graph  # a plan is built where onnx is

from fastpose.engines import tensorrt  # noqa: E402

plan = folder / "net.plan"
job = Job(
    spec=spec,
    weights=None,
    precision="f32",
    device="auto",
    buckets=(1, 2),
    options=Options(),
    threads=None,
    calibration=None,
    timing_cache=None,
    tell=lambda stage: None,
)
tensorrt.build(job, plan)  # without a kernel that finds joints: triton is missing
binary.save(folder / "net")
request = Request(
    spec=spec,
    file=plan,
    weights_hash="",
    device="auto",
    precision="f32",
    passed=(),
    buckets=job.buckets,
    threads=None,
)
engine = tensorrt.TensorRTEngine(request)
assert engine.memory.kind == "pycuda"
engine.manifest.save(plan.with_suffix(".json"))
engine.close()

picture = folder / "picture.png"
pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
cv2.imwrite(str(picture), pixels)
found = {}
for name, reason in (("on the device", ""), ("on the host", "nobody built it")):
    for module in (direct, sys.modules["fastpose.ops.warp"]):
        module.gpu_kernels = lambda reason=reason: {"warp": reason}
    driver.calls.clear()
    out = folder / name
    arguments = [str(picture), "--engine", str(plan), "--detector", "none", "--out", str(out)]
    assert main(["predict", *arguments]) in (0, None)
    lines = (out / "picture.people.jsonl").read_text().splitlines()
    found[name] = json.loads(lines[1])
    assert ("cuLaunchKernel" in driver.calls) == (not reason)
people = [found[name]["people"] for name in found]
assert len(people[0]) == len(people[1]) == 1
points, expected = (np.array(one[0]["keypoints"], float) for one in people)
assert np.isfinite(points).any()
np.testing.assert_allclose(points, expected, atol=0.1)
scores, expected = (np.array(one[0]["scores"], float) for one in people)
np.testing.assert_allclose(scores, expected, rtol=1e-4)  # of maps that tell of their windows
assert not pycuda.stack
sys.stdout.write(f"predicted {len(points)} joints twice\n")
