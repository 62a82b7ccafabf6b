"""What the Triton kernels compile to; run by tests/ops/test_compiled.py, which says why.

`python -m pytest --confcutdir=tests/compiled tests/compiled` does so by hand.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import triton

from fastpose.ops.triton import aot

INSTANCES = {one.name: one for op in aot.OPS for one in aot.instances(op)}

# A decode takes up to 2 s to compile: all do for sm_90, the hardest ones for the others.
HARD_DECODES = ("decode cpn", "decode udp sigma3", "decode dark flip stages")
CASES = [
    (name, capability)
    for name, one in INSTANCES.items()
    for capability in one.capabilities
    if capability == 90 or not name.startswith("decode") or name in HARD_DECODES
]
ON_90 = [name for name, capability in CASES if capability == 90]

SHARED = {80: 163 << 10, 90: 227 << 10, 120: 99 << 10}  # bytes that one program may have
REGISTERS = 65536  # of one multiprocessor
HIDDEN = ["u64", "u64"]  # scratch memory and the profiler's


def test_names_are_unique():
    assert len(INSTANCES) == sum(len(aot.instances(op)) for op in aot.OPS)


@pytest.mark.parametrize(("name", "capability"), CASES)
def test_a_kernel_fits_without_local_memory(name, capability):
    used = aot.measure(name, capability)
    assert (used.stack, used.local) == (0, 0)
    assert used.registers <= 255
    assert used.registers * 32 * INSTANCES[name].warps <= REGISTERS
    assert used.shared <= SHARED[capability]


@pytest.mark.parametrize("name", [name for name in ON_90 if not name.startswith("decode")])
def test_no_instruction_is_one_of_local_memory(name):
    assert aot.measure(name, 90).spills == 0


@pytest.mark.parametrize("name", [name for name in INSTANCES if name.startswith("render")])
def test_a_rendered_row_is_stored_in_the_widest_pieces(name):
    wide = "STG.E.64" if INSTANCES[name].constants["VECTOR"] == 2 else "STG.E.128"
    assert wide in aot.measure(name, 90).instructions


def test_half_products_on_sm_90_are_those_of_warp_groups():
    products = [
        name
        for name in ON_90
        if re.search(r"tt\.dot .*xb?f16", aot.compile_instance(INSTANCES[name], 90).asm["ttir"])
    ]
    assert len(products) >= 2
    assert [name for name in products if not aot.measure(name, 90).hgmma] == []


@pytest.mark.parametrize(("name", "capability"), CASES)
def test_arguments_are_the_declared_ones_and_two_null_pointers(name, capability):
    instance = INSTANCES[name]
    compiled = aot.compile_instance(instance, capability)
    declared = [
        "u64" if kind.startswith("*") else {"i32": "u32", "i64": "u64", "fp32": "f32"}[kind]
        for kind in (instance.types.get(one) for one in instance.kernel.arg_names)
        if kind is not None
    ]
    entry = re.search(r"\.entry \w+\((.*?)\)", compiled.asm["ptx"], re.DOTALL)[1]
    assert re.findall(r"\.param \.(\w+)", entry) == declared + HIDDEN
    metadata = compiled.metadata
    assert (metadata.global_scratch_size, metadata.profile_scratch_size) == (0, 0)
    assert metadata.num_ctas == 1
    assert not metadata.launch_cooperative_grid


def test_every_argument_has_a_type_or_a_value():
    for instance in INSTANCES.values():
        names = inspect.signature(instance.kernel.fn).parameters
        assert {*instance.types, *instance.constants} == set(names), instance.name
        assert not set(instance.types) & set(instance.constants), instance.name


@pytest.fixture(scope="module")
def docs():
    """docs/kernels.md"""
    return (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()


@pytest.fixture(scope="module")
def rows(docs):
    """The cells of its tables of instances, by name, where they are of the Triton at hand."""
    documented = re.search(r"those of Triton (\S+),", docs)[1]
    if triton.__version__ != documented:
        pytest.skip(f"the figures are those of Triton {documented}")
    lines = [line.strip("| ").split("|") for line in docs.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines}


@pytest.mark.parametrize("op", aot.OPS)
def test_the_docs_have_a_row_for_every_instance(op, docs):
    rows = re.findall(rf"^\| ({op} [^|]*?) \|", docs, re.MULTILINE)
    assert rows == [one.name for one in aot.instances(op)]


@pytest.mark.parametrize(("name", "capability"), CASES)
def test_the_docs_have_the_figures(name, capability, rows):
    warps, *cells = rows[name]
    assert int(warps) == INSTANCES[name].warps
    assert cells[aot.CAPABILITIES.index(capability)] == aot.figure(aot.measure(name, capability))


@pytest.mark.parametrize("name", [name for name in ON_90 if not name.startswith("decode")])
def test_the_docs_have_the_instructions(name, rows):
    assert rows[name][-1] == ", ".join(aot.measure(name, 90).instructions)


def test_the_tables_of_a_page_are_made_anew(monkeypatch):
    page = "".join(
        f"\n## {op.capitalize()}\n\n{op}\n\n| kernel | old |\n| a | 1 |\n\n| b |\n"
        for op in reversed(aot.OPS)
    )
    monkeypatch.setattr(aot, "table", lambda op: f"| kernel | new {op} |")
    expected = page.replace("\n| a | 1 |", "")
    for op in aot.OPS:
        expected = expected.replace(f"{op}\n\n| kernel | old |", f"{op}\n\n| kernel | new {op} |")
    assert aot.renew(page) == expected
