"""Memory of a CUDA device: which library gives it, and in what order that is called."""

import ast
import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from device_fakes import STREAM, Bindings, Driver, PyCUDA

from fastpose.engines import memory
from fastpose.engines.memory import DeviceArray, open_memory
from fastpose.errors import BackendError, EngineError
from fastpose.ops import cubin

ROOT = Path(__file__).parents[1]
SOURCE = Path(memory.__file__)
FUNCTION = re.compile("cu[A-Z]")  # of the driver


@pytest.fixture(params=["pycuda", "cuda"])
def library(request, monkeypatch):
    """A library that is not there, as (its kind, the double)."""
    memory._pycuda_context.cache_clear()
    fake = (PyCUDA if request.param == "pycuda" else Bindings)()
    yield request.param, fake.install(monkeypatch)
    memory._pycuda_context.cache_clear()


def test_what_is_uploaded_comes_down(library):
    kind, fake = library
    opened = open_memory(kind)
    assert (opened.kind, opened.device, opened.gpu) == (kind, "cuda:0", "NVIDIA Fake")
    assert (opened.capability, opened.stream) == ((9, 0), STREAM)
    array = opened.empty((3, 5), "float32")
    host = opened.host((3, 5), "float32")
    host[:] = np.arange(15).reshape(3, 5)
    opened.upload(host, array)
    found = opened.host((5,), "float32")
    opened.download(array.part(4 * 5, (5,), "float32"), found)
    opened.synchronize()
    np.testing.assert_array_equal(found, host[1])
    del array, host, found
    opened.close()
    del opened
    gc.collect()
    assert not fake.stack
    assert fake.rooms.rooms == {}


def test_streams_of_others_are_waited_for_in_the_context(library, monkeypatch):
    kind, fake = library
    opened, driver, waited = open_memory(kind), Driver(), []
    monkeypatch.setattr(cubin, "_driver", lambda: driver)
    driver._cuStreamSynchronize = lambda stream: waited.append((stream.value, len(fake.stack)))
    opened.wait_for(99)
    assert waited == [(99, 1)]
    driver.fail = "cuStreamSynchronize"
    with pytest.raises(EngineError, match="cuStreamSynchronize: CUDA_ERROR_INVALID_VALUE"):
        opened.wait_for(99)
    assert not fake.stack


def test_the_primary_context_is_pushed_and_popped_round_each_call(library):
    kind, fake = library
    opened = open_memory(kind)
    push, pop = ("push", "pop") if kind == "pycuda" else ("CtxPushCurrent", "CtxPopCurrent")
    for use in (
        lambda: opened.empty((4,), "uint8"),
        lambda: opened.host((4,), "uint8"),
        opened.synchronize,
    ):
        fake.calls.clear()
        use()
        gc.collect()
        assert fake.calls[0] == push
        assert fake.calls[-1] == pop
        assert fake.calls.count(push) == fake.calls.count(pop)
        assert not fake.stack


def test_a_primary_context_is_released_after_all_that_lives_in_it(monkeypatch):
    fake = Bindings().install(monkeypatch)
    opened = open_memory("cuda")
    array, host = opened.empty((4,), "uint8"), opened.host((4,), "uint8")
    view = host[1:]
    opened.close()
    del opened, host
    gc.collect()
    assert fake.retained == 1
    view[:] = 5  # still there
    del array
    gc.collect()
    assert fake.retained == 1
    del view
    gc.collect()
    assert fake.retained == 0
    assert fake.rooms.rooms == {}


def test_pycuda_retains_a_context_once_for_the_process(monkeypatch):
    memory._pycuda_context.cache_clear()
    fake = PyCUDA().install(monkeypatch)
    for _ in range(3):
        open_memory("pycuda").close()
    assert fake.calls.count("retain") == 1
    assert fake.calls.count("stream freed") == 3


def test_an_error_of_the_device_is_one_line_and_leaves_no_context(library):
    kind, fake = library
    opened = open_memory(kind)
    fake.fail = "mem_alloc" if kind == "pycuda" else "_cuMemAlloc"
    with pytest.raises(EngineError, match=f"^{kind}: .*out of memory$"):
        opened.empty((1 << 20,), "float32")
    assert not fake.stack


def test_closed(library):
    kind, _ = library
    opened = open_memory(kind)
    array, host = opened.empty((4,), "uint8"), opened.host((4,), "uint8")
    opened.close()
    opened.close()
    for use in (
        lambda: opened.stream,
        opened.synchronize,
        lambda: opened.upload(host, array),
        lambda: opened.download(array, host),
    ):
        with pytest.raises(EngineError, match=f"memory '{kind}' is closed"):
            use()
    if kind == "cuda":  # whose context is released
        with pytest.raises(EngineError, match="memory 'cuda' is closed"):
            opened.empty((4,), "uint8")


def test_copies_are_of_dense_arrays_of_one_size(library):
    opened = open_memory(library[0])
    array, host = opened.empty((4, 2), "float32"), opened.host((4, 4), "float32")
    with pytest.raises(ValueError, match="must be 32 bytes, dense, got 64"):
        opened.upload(host, array)
    with pytest.raises(ValueError, match="got 32 not dense"):
        opened.download(array, host[:, ::2])
    nothing = opened.empty((0, 3), "float32")
    opened.upload(np.empty((0, 3), np.float32), nothing)


def test_a_device_that_is_not_there(monkeypatch):
    Bindings(devices=2).install(monkeypatch)
    assert open_memory("cuda", "cuda:1").device == "cuda:1"
    with pytest.raises(BackendError, match="no device cuda:2; it sees: cuda:0 to cuda:1"):
        open_memory("cuda", "cuda:2")
    PyCUDA(devices=0).install(monkeypatch)
    with pytest.raises(BackendError, match="no device cuda:0; it sees: no CUDA device"):
        open_memory("pycuda")
    for name in ("cpu", "cuda:x", "GPU.1"):
        with pytest.raises(BackendError, match=f"device must be cuda .* got '{name}'"):
            open_memory("cuda", name)


def block(monkeypatch, *modules):
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


def test_what_is_missing_is_named(monkeypatch):
    block(monkeypatch, "torch", "pycuda", "cuda", "cuda.bindings")
    for kind, package in (
        ("torch", r"the extra fastpose-inference\[torch\]"),
        ("pycuda", r"the extra fastpose-inference\[pycuda\]"),
        ("cuda", r"the extra fastpose-inference\[cuda\]"),
    ):
        with pytest.raises(BackendError, match=f"memory '{kind}' needs {package}, which is not"):
            open_memory(kind)
    with pytest.raises(BackendError, match=r"needed is one of: .*torch.*pycuda.*cuda"):
        open_memory()
    with pytest.raises(BackendError, match="no memory 'cupy'; there is: torch, pycuda, cuda"):
        open_memory("cupy")


def test_auto_takes_torch_where_it_is_loaded_else_pycuda_then_cuda_bindings(monkeypatch):
    Bindings().install(monkeypatch)
    PyCUDA().install(monkeypatch)
    monkeypatch.setitem(sys.modules, "torch", sys.modules[__name__])
    assert memory._choose("auto") == "torch"
    monkeypatch.delitem(sys.modules, "torch")
    assert memory._choose("auto") == "pycuda"
    block(monkeypatch, "pycuda")
    assert memory._choose("auto") == "cuda"


def test_without_a_driver_the_error_is_one_line(monkeypatch):
    fake = Bindings().install(monkeypatch)

    def no_driver(flags):
        raise RuntimeError("libcuda.so.1: not found\nwhere it was looked for")

    fake.module.cuInit = no_driver
    with pytest.raises(BackendError, match=r"^memory 'cuda': libcuda.so.1: not found$"):
        open_memory("cuda")


def test_the_array_interface_is_what_others_take():
    array = DeviceArray(4096, (2, 3), "bfloat16", None)
    assert array.nbytes == 12
    assert array.__cuda_array_interface__ == {
        "version": 3, "shape": (2, 3), "typestr": "<i2", "data": (4096, False), "strides": None,
    }  # fmt: skip
    assert array.part(4, (4,), "float16").address == 4100
    with pytest.raises(ValueError, match="must lie in 12 bytes, got 8"):
        array.part(8, (3,), "float16")


def driver_calls():
    """Every function of cuda-bindings that is named, with the counts of arguments it is given."""
    found = {}
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(attr=name), args=given) if FUNCTION.match(name):
                found.setdefault(name, set()).add(len(given))
            case ast.Call(args=[_, ast.Attribute(attr=name), _]) if FUNCTION.match(name):
                found.setdefault(name, set()).add(1)  # called later, with a handle
    return found


def test_the_double_has_what_is_called():
    assert set(driver_calls()) <= set(vars(Bindings().module))
    assert len(driver_calls()) >= 15


def test_cuda_bindings_have_every_function_that_is_called_with_as_many_arguments():
    driver = pytest.importorskip("cuda.bindings.driver", reason="needs cuda-bindings")
    for name, counts in driver_calls().items():
        (signature,) = re.findall(rf"^{name}\((.*?)\)", getattr(driver, name).__doc__)
        assert counts == {len([one for one in signature.split(",") if one.strip()])}, name
    kinds = driver.CUdevice_attribute
    assert int(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) == 75
    assert int(driver.CUresult.CUDA_SUCCESS) == 0
    assert int(driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) == 8


def test_cuda_bindings_without_a_driver_say_so():
    code = "from fastpose.engines.memory import open_memory; open_memory('cuda')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("there is a device")
    assert re.search(r"BackendError: memory 'cuda'.*$", done.stderr.strip().splitlines()[-1])


USE = """
import ctypes, gc, os, sys
sys.setdlopenflags(os.RTLD_LAZY)  # of what is linked, only what is called needs to be there
sys.modules["torch"] = None
import numpy as np
from fastpose.engines.memory import open_memory
from fastpose.errors import EngineError

names = ("pushed", "retained", "device", "host", "streams", "copies", "outside")
counters = (ctypes.c_int * len(names)).in_dll(ctypes.CDLL("libcuda.so.1"), "counters")
memory = open_memory(sys.argv[1])
assert (memory.gpu, memory.capability, memory.driver) == ("a host", (9, 0), "12.4"), memory.gpu
assert memory.stream == 0x52
array, host = memory.empty((3, 5), "float16"), memory.host((3, 5), "float16")
host[:] = np.arange(15).reshape(3, 5)
memory.upload(host, array)
back = memory.host((2, 5), "float16")
memory.download(array.part(10, (2, 5), "float16"), back)
memory.synchronize()
assert (back == host[1:]).all()
assert (counters[2], counters[3], counters[4], counters[5]) == (1, 2, 1, 2)
try:
    memory.empty((1 << 41,), "uint8")
except EngineError as error:
    print(error)
else:
    raise SystemExit("nobody said that the memory is out")
memory.close()
kept = back[1:]
del memory, array, host, back
gc.collect()
assert kept[0, 0] == 10
del kept
gc.collect()
print(dict(zip(names, counters)))
"""


@pytest.mark.parametrize("kind", ["pycuda", "cuda"])
def test_the_true_library_on_a_driver_of_the_hosts_memory(kind, tmp_path):
    module = memory.KINDS[kind][0]
    if not memory._installed(module):
        pytest.skip(f"needs {module}")
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    source, path = ROOT / "tests" / "fake_cuda.c", tmp_path / "libcuda.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", source, "-o", path], check=True)
    done = subprocess.run(
        [sys.executable, "-c", USE, kind],
        cwd=ROOT,
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said, counts = done.stdout.splitlines()
    assert said.startswith(f"{kind}: ")
    assert "out of memory" in said
    # pycuda keeps its context until the end
    retained = int(kind == "pycuda")
    left = {"pushed": 0, "retained": retained, "device": 0, "host": 0, "streams": 0}
    assert counts == str({**left, "copies": 2, "outside": 0})


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["pycuda", "cuda", "torch"])
def test_memory_is_shared_with_torch(kind):
    torch = pytest.importorskip("torch")
    torch.zeros(1, device="cuda")  # torch has the primary context already
    try:
        opened = open_memory(kind)
    except BackendError as error:
        pytest.skip(str(error))
    assert opened.gpu == torch.cuda.get_device_name(0)
    assert opened.capability == torch.cuda.get_device_capability(0)
    array, host = opened.empty((5, 7), "float32"), opened.host((5, 7), "float32")
    host[:] = np.arange(35).reshape(5, 7)
    opened.upload(host, array)
    opened.synchronize()
    tensor = torch.as_tensor(array, device="cuda")
    assert tensor.data_ptr() == array.address
    np.testing.assert_array_equal(tensor.cpu().numpy(), host)
    tensor *= 2  # written by torch, read by the library
    opened.wait_for(torch.cuda.current_stream().cuda_stream)
    found = opened.host((5, 7), "float32")
    opened.download(array, found)
    opened.synchronize()
    np.testing.assert_array_equal(found, 2 * host)
    del tensor
    opened.close()
    assert torch.ones(3, device="cuda").sum().item() == 3  # torch's context is as it was


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["pycuda", "cuda"])
def test_memory_without_torch_on_a_device(kind):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from fastpose.engines.memory import open_memory\n"
        f"m = open_memory({kind!r})\n"
        "a, h = m.empty((4, 3), 'float16'), m.host((4, 3), 'float16')\n"
        "h[:] = 3; m.upload(h, a); h[:] = 0; m.synchronize(); h[:] = 0\n"
        "m.download(a, h); m.synchronize(); assert (h == 3).all()\n"
        "print(m.gpu, m.driver); del a, h; m.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "is not installed" in done.stderr or "does not load" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr
