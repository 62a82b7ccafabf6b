"""compute-sanitizer over a small run of every kernel: accesses out of bounds, races in a block.

    python benchmarks/gpu/sanitize.py --out FILE.json     memcheck and racecheck of every part
    python benchmarks/gpu/sanitize.py --part PART         that part's calls alone, to be watched
    python benchmarks/gpu/sanitize.py --dry-run           all calls, on the CPU, by nobody watched

Memory is allocated without torch's cache, so that what lies behind a tensor belongs to nobody, and
inputs are made on the host, so that few kernels but ours are watched. A part that reads where it
must not proves that the tool works here at all; where it finds nothing, the tool counts as absent.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from report import ABSENT, MESSAGE, Report

from fastpose import ops
from fastpose.ops.decode import METHODS, STAGES
from fastpose.ops.render import PEOPLE, STYLES

TOOLS = {
    "memcheck": r"ERROR SUMMARY: (\d+) error",
    "racecheck": r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) error",
}
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
AT_ONCE = 9  # compiling keeps a core busy for longer than the kernels do the device
SECONDS = 62  # for everything
PLANTED = "planted"


def run_warp(device: torch.device) -> None:
    """Every layout and type, one area and several, windows over the edge, one frame and a table.

    Of 16-bit pixels in NHWC an even width is stored in pairs. Maps of 8 channels that lie side by
    side are read in vectors, and give a gradient back.
    """
    dry = device.type == "cpu"
    backend = "cpp" if dry else "cuda"
    frames = torch.randint(0, 256, (2, 22, 37, 3), dtype=torch.uint8).to(device)
    video = torch.randint(0, 256, (2, 33, 38), dtype=torch.uint8).to(device)
    turned, shrunk = [[1.3, 0.2, -4.0], [-0.1, 1.7, 3.0]], [[3.1, 0.0, 1.0], [0.0, 2.9, -2.0]]
    nowhere = [[float("nan")] * 3] * 2
    affines = torch.tensor([turned, shrunk, nowhere]).to(device)
    source = torch.tensor([1, 0, 1], dtype=torch.int32).to(device)
    areas = torch.tensor([1, 3, 2], dtype=torch.int32).to(device)
    table = ops.FrameTable(torch.from_numpy(ops.frame_rows(list(frames))).to(device))
    names = ("float32", "float16") if dry else ("float32", "float16", "bfloat16")
    for dtype in names:
        for out_layout, size in (("nchw", (13, 11)), ("nhwc", (13, 12))):
            common = {"source": source, "out_layout": out_layout, "dtype": dtype}
            for area in (1, areas):
                options = {"area": area, "mean": (9, 8, 7), "std": (3, 2, 4), "backend": backend}
                out = ops.warp(frames, affines, size, swap_rb=True, **options, **common)
                ops.warp(table, affines, size, out=out, **options, **common)
                if not dry:
                    ops.warp(video, affines, size, layout="nv12", **options, **common)
            common |= {"layout": "chw", "area": 2, "backend": backend}
            for kind in (getattr(torch, name) for name in names):
                ops.warp(torch.randn(2, 5, 22, 37).to(kind).to(device), affines, (7, 7), **common)
                last = torch.randn(2, 22, 37, 8).to(kind).to(device).permute(0, 3, 1, 2)
                cut = ops.warp(last.requires_grad_(), affines, (7, 7), **common)
                cut.backward(torch.randn(cut.shape).to(cut))


def run_decode(device: torch.device) -> None:
    """Every method, type and layout, both maps of a flip, several stages and peaks."""
    maps = torch.rand(2, 3, 17, 13).half()
    last = maps.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    affines = torch.randn(2, 2, 3).to(device)
    for method in METHODS:
        sigma = 1.4 if method == "cpn" else 2.0
        ops.decode(maps.to(device), method=method, sigma=sigma, affines=affines, backend="triton")
    others = [last, maps.float(), maps.bfloat16()]
    for other in others[:2] if device.type == "cpu" else others:
        ops.decode(other.to(device), backend="triton")
    pair = {"flipped": maps.flip(-1).to(device), "flip_pairs": [(0, 1)], "flip_shift": 1}
    ops.decode(maps.to(device), **pair, backend="triton")
    stages = torch.rand(2, 1, 2, 9, 7).to(device)
    for join in STAGES:
        ops.decode(stages, stages=join, peaks=3, backend="triton")


def run_render(device: torch.device) -> None:
    """Every style, joints over the edge, both ways to join people, with the background's map."""
    points = (24 * torch.rand(2, 3, 4, 2) - 4).to(device)
    visible = torch.ones(2, 3, 4).to(device)
    for i, style in enumerate(STYLES):
        for background, size in ((True, (17, 13)), (False, (16, 16))):
            ops.render(
                points,
                visible,
                size,
                sigma=1.4,
                style=style,
                people=PEOPLE[(i + background) % len(PEOPLE)],
                background=background,
                backend="triton",
            )


def run_propagate(device: torch.device) -> None:
    """Each direction, type and precision, sizes that no tile divides."""
    if device.type == "cpu":
        send(device, torch.float16, (-1, 0, 0), both=True)
        return
    for both in (True, False):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            send(device, dtype, (-1, 0, 0, 1), both=both)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            send(device, torch.float32, (-1, 0, 0, 1), both=both)


def send(device: torch.device, dtype: torch.dtype, parents: tuple[int, ...], *, both: bool) -> None:
    """Messages along a tree."""
    lead = (2,) if both else ()
    edges = (*lead, len(parents) - 1)
    features = torch.randn(1, *lead, len(parents), 16, 9, 7)
    kernels = [0.05 * torch.randn(*edges, *pair, 7, 7) for pair in ((24, 16), (16, 24))]
    biases = [torch.randn(*edges, width) for width in (24, 16)]
    ops.propagate(
        features.to(dtype).to(device),
        [kernel.to(dtype).to(device) for kernel in kernels],
        [bias.to(dtype).to(device) for bias in biases],
        parents,
        direction="both" if both else "up",
        activate="before" if both else "after",
        backend="triton",
    )


def run_planted(device: torch.device) -> None:
    """Reads far behind a frame, whose table says that it has more rows than there are."""
    frame = torch.zeros(16, 16, 3, dtype=torch.uint8).to(device)
    rows = ops.frame_rows([frame])
    rows[0, 2] = 1 << 20
    affines = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 3e4, 0.0]]]).to(device)
    out = torch.empty(1, 3, 16, 16, device=device)
    source = torch.zeros(1, dtype=torch.int32).to(device)
    table = ops.FrameTable(torch.from_numpy(rows).to(device))
    ops.warp(table, affines, (16, 16), source=source, out=out, backend="cuda")


PARTS: dict[str, Callable[[torch.device], None]] = {
    "warp": run_warp,
    "decode": run_decode,
    "render": run_render,
    "propagate": run_propagate,
}


def find_tool() -> str | None:
    """Where compute-sanitizer is; None where it is not."""
    places = [os.environ.get("PATH", ""), *PLACES]
    places += [str(Path(os.environ[key]) / "bin") for key in ("CUDA_HOME",) if key in os.environ]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(places))


def watch(program: str, tool: str, part: str, end: float) -> dict[str, Any]:
    """Run one part under one tool, at most until `end` on the monotonic clock."""
    command = [program, "--tool", tool, "--print-limit", "10", "--error-exitcode", "9"]
    command += [sys.executable, __file__, "--part", part]
    begin = time.monotonic()
    child = subprocess.Popen(
        command,
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = child.communicate(timeout=max(1.0, end - begin))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, _ = child.communicate()
        said += "\n(out of time)"
    lines = [line for line in said.splitlines() if line.strip()]
    return {
        "tool": tool,
        "part": part,
        "verdict": judge(said, tool, part, child.returncode),
        "seconds": round(time.monotonic() - begin, 1),
        "said": [line[:MESSAGE] for line in lines[-12:]],
    }


def judge(said: str, tool: str, part: str, status: int) -> str:
    """One word, and the reason if it is not "clean" (for the planted error "found")."""
    summaries = re.findall(TOOLS[tool], said)
    if not summaries:
        return f"no verdict: {(said.strip().splitlines() or ['no output'])[-1]}"[:MESSAGE]
    errors = sum(map(int, summaries))
    if part == PLANTED:  # a call that a refused tool makes fail counts as an error, too
        return "found" if "Invalid __global__ read" in said else "not found"
    if errors:
        return f"{errors} errors"
    return "clean" if status == 0 else f"clean, but the calls failed with status {status}"


def watch_all(out: Path | None) -> int:
    """Every part under every tool: 0 if all are clean, 1 if not, `ABSENT` if no tool can see."""
    report = Report(out)
    program = find_tool()
    if program is None:
        print("compute-sanitizer is not installed")
        return ABSENT
    end = time.monotonic() + SECONDS
    jobs = [("memcheck", PLANTED), *((tool, part) for tool in TOOLS for part in PARTS)]
    verdicts: list[str] = []  # of the planted error first
    with ThreadPoolExecutor(AT_ONCE) as workers:
        for entry in workers.map(lambda job: watch(program, *job, end), jobs):
            verdict = str(entry["verdict"])
            if verdicts and verdicts[0] != "found" and not verdict.startswith("no verdict"):
                verdict = f"no verdict: {verdict}, by a tool that found no planted error"
            verdicts.append(verdict)
            report.append("sanitizer", {**entry, "verdict": verdict})
            print(f"{entry['tool']} {entry['part']}: {verdict}", flush=True)
            if verdict not in ("clean", "found"):
                print("\n".join(entry["said"]), flush=True)
    if verdicts[0] != "found":
        print("compute-sanitizer cannot see into this device")
        return ABSENT
    return int(any(verdict != "clean" for verdict in verdicts[1:]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Watch every part, or be the one that is watched."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--part", choices=(*PARTS, PLANTED))
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    if args.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before an op imports triton
        torch.set_num_threads(1)
        for part, run in PARTS.items():
            run(torch.device("cpu"))
            print(f"{part}: ran; nothing watched it")
        Report(args.out).set(sanitizer=[])
    elif args.part:
        ({**PARTS, PLANTED: run_planted})[args.part](torch.device("cuda"))
        torch.cuda.synchronize()
    elif status := watch_all(args.out):
        raise SystemExit(status)


if __name__ == "__main__":
    main()
