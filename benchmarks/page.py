"""Makes docs/benchmarks.md and its pictures from the results of each machine.

    python benchmarks/page.py            # writes them
    python benchmarks/page.py --check    # status 1 if the page is not what the results give

The newest file of a machine gives its tables, all of its files the ratios over time. Of two files
of one day the one whose name sorts last counts as newer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fastpose.bench.plots import COLOURS, new_axes, plot_accuracy, plot_latency
from fastpose.bench.rows import Document, Peer, Row, read_document
from fastpose.bench.table import TITLES, group_table, machine_line, number
from fastpose.measure import SPREAD

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
PEOPLE = (1, 8, 32)  # columns of the headline
NETWORKS = ("cpn-light", "cpn50")  # in the headline: the default, and one that all can run
SELF = ("reference", "scalar", "baseline", "smaller maps")  # peers that are no other project
LOOP, SINGLE = "reading and pose", "one person"  # rows of the pipeline that stand beside a peer
DETECT = "detect"
HEADLINE = "Beside other projects"
GPU = "not measured: no GPU was at hand"
METHODS = {"dark": "DARK", "udp": "DARK with UDP's blur", "quarter": "quarter of a cell"}

HEAD = """# Benchmarks

<!-- python benchmarks/page.py makes this page from benchmarks/results: change those. -->
"""
METHOD = f"""## How it was measured

- Ours and a peer take turns in one run on the same inputs; a ratio is the median of the ratios of
  the turns, and × 2 means that ours needs half of the peer's time. Times of two runs are never
  compared.
- Each answer is checked before it is timed; how far the two answers are apart stands beside.
- A peer that pins other versions runs in an environment and a process of its own, times itself
  there with the same clock, and has as many threads.
- A median that may be over {100 * SPREAD:.0f} % off, by its 95 % interval, is refused, not shown.
- Single operations are processor time of one thread; networks and whole loops are wall time.

How to run it: `pytest benchmarks` (minutes) or `pytest benchmarks --full` (all cases); for a model
and video of your own, [`fastpose bench`](benchmarking.md).
"""


@dataclass(frozen=True)
class Machine:
    """All results of one machine, oldest first.

    Attributes:
        name: of its folder.
        documents: at least one.
    """

    name: str
    documents: tuple[Document, ...]

    @property
    def newest(self) -> Document:
        return self.documents[-1]

    @property
    def has_gpu(self) -> bool:
        return bool(self.newest.machine.get("gpus"))


def machines(folder: Path) -> list[Machine]:
    """Of a folder of results, by name; what was measured between two commits is nobody's."""
    found = []
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        paths = [path for path in part.glob("*.json") if not path.stem.endswith("-dirty")]
        documents = [read_document(path) for path in sorted(paths)]
        if documents:
            found.append(Machine(part.name, tuple(sorted(documents, key=lambda one: one.date))))
    return found


# Tables


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    return [*lines, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)]


def times_as(ratio: float | None) -> str:
    return "–" if ratio is None else f"× {number(ratio)}"


@dataclass
class Line:
    """One of the headline: what, beside whom.

    Attributes:
        ratios: by people.
        ours: milliseconds, by people.
        answers: how right it is, by people.
    """

    what: str
    peer: str
    threads: int
    ratios: dict[int, float] = field(default_factory=dict)
    ours: dict[int, float] = field(default_factory=dict)
    answers: dict[int, str] = field(default_factory=dict)

    @property
    def typical(self) -> int:
        """8 people where they were measured: most readers have some."""
        return 8 if 8 in self.ratios else max(self.ratios)

    def cells(self) -> list[str]:
        ratios = [times_as(self.ratios.get(people)) for people in PEOPLE]
        spent = f"{number(self.ours[self.typical])} ({self.typical})"
        threads = str(self.threads) if self.threads else "the runtime's"
        return [self.what, self.peer, *ratios, spent, self.answers[self.typical], threads]


def headline(rows: Sequence[Row]) -> list[Line]:
    """Ours beside other projects, in the order in which the first of a kind was measured."""
    found: dict[tuple[str, str, int], Line] = {}
    for row in rows:
        what, people = what_of(row), people_of(row)
        for name, peer in row.peers.items():
            if what is None or people not in PEOPLE or name in SELF or peer.ratio is None:
                continue
            line = found.setdefault((what, name, row.threads), Line(what, name, row.threads))
            line.ratios[people], line.ours[people] = peer.ratio, row.median_ms or 0.0
            line.answers[people] = answer_of(row, peer)
    order = list(dict.fromkeys(line.what for line in found.values()))
    return sorted(found.values(), key=lambda line: order.index(line.what))


def people_of(row: Row) -> int | None:
    people = row.case.get("people", row.case.get("batch"))
    return people if isinstance(people, int) else None


def what_of(row: Row) -> str | None:
    """A row in the words of the headline; None where it is not in it."""
    what = _what(row)
    return f"{what}, on the GPU" if what and row.device == "cuda" else what


def _what(row: Row) -> str | None:
    case = row.case
    if row.group == "ops":
        method = str(case.get("method", ""))
        return f"{row.name}, {METHODS.get(method, method)}" if method else row.name
    engine = " ".join(str(case[key]) for key in ("engine", "compile", "precision") if key in case)
    if row.group == "engines" and row.name in NETWORKS:
        return f"network {row.name}, {engine}"
    if row.group == "pipeline" and row.name == LOOP:
        return f"reading a video and pose, CPN-50, {engine}"
    if row.group == "pipeline" and row.name == SINGLE and case.get("people") == 1:
        return f"whole loop, one person, {case.get('precision')}, detector every {case['every']}"
    return None


def answer_of(row: Row, peer: Peer) -> str:
    """Accuracy of both where it is known, else how far the answers are apart."""
    if "pck" in row.figures:
        ours = f"PCK@0.2 {number(row.figures['pck'])}"
        return f"{ours}, {number(peer.figures['pck'])}" if "pck" in peer.figures else ours
    if "shift_px" in row.figures:
        return f"joints moved {number(row.figures['shift_px'])} px"
    return peer.difference or row.check


def headline_table(rows: Sequence[Row]) -> list[str]:
    heads = [
        "what",
        "beside",
        *(f"{n} {'person' if n == 1 else 'people'}" for n in PEOPLE),
        "ours, ms (people)",
        "answers (ours, theirs)",
        "threads",
    ]
    lines = headline(rows)
    return markdown_table(heads, (line.cells() for line in lines)) if lines else []


def single_table(rows: Sequence[Row]) -> list[str]:
    """One person in a video, the whole loop, ours and MediaPipe's."""
    cells = []
    for row in rows:
        for name, peer in row.peers.items():
            if row.time is None or peer.ratio is None or peer.time is None:
                continue
            pck = f"{_figure(row.figures, 'pck')} / {_figure(peer.figures, 'pck')}"
            seen = f"{_figure(row.figures, 'seen_percent')} / "
            cells.append(
                [
                    "with a person" if row.case.get("people") else "empty",
                    f"{row.case.get('engine')} {row.case.get('precision')}",
                    str(row.case.get("every")),
                    name,
                    f"{number(row.time['median_ms'])} / {number(float(peer.time['median_ms']))}",
                    times_as(peer.ratio),
                    seen + _figure(peer.figures, "seen_percent"),
                    pck,
                    _figure(row.figures, "pictures"),
                ]
            )
    heads = ["frames", "ours", "detector every", "beside", "ms a frame, ours / theirs", "ratio"]
    heads += ["frames with somebody found, %", "PCK@0.2 of 12 limb joints on LSP", "its pictures"]
    return markdown_table(heads, cells) if cells else []


def _figure(figures: Mapping[str, float], name: str) -> str:
    return number(figures[name]) if name in figures else "–"


def missing(rows: Sequence[Row]) -> list[str]:
    """Of what stands beside a peer: who was not there and why, and what was refused."""
    absent: dict[tuple[str, str], list[str]] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.absent and row.name in (LOOP, SINGLE):  # the other tables tell it themselves
            absent.setdefault((what_of(row) or row.name, row.absent), []).append(place_of(row))
        if not set(row.peers) - set(SELF):
            continue
        if row.refused:
            refused.setdefault((what_of(row) or row.name, row.refused), []).append(place_of(row))
            continue
        for name, peer in row.peers.items():
            if peer.absent and name not in SELF:
                absent.setdefault((name, peer.absent), []).append(what_of(row) or row.name)
    lines = [f"- {name}: {why} ({_once(what)})" for (name, why), what in absent.items()]
    return lines + [
        f"- refused: {_once([what, *places])}: {why}" for (what, why), places in refused.items()
    ]


def place_of(row: Row) -> str:
    people = people_of(row)
    return "" if people is None else f"{people} {'person' if people == 1 else 'people'}"


def _once(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(filter(None, words)))


# Sections


def answer(document: Document) -> list[str]:
    """What a reader came for, in a few lines; only what was measured."""
    found = headline(document.rows)
    lines = []
    for what, words in (
        ("warp, straight", "Cutting and normalising the windows of 8 people"),
        ("decode, DARK", "Decoding the heat maps of 8 people with DARK"),
    ):
        ratios = {
            line.peer: line.ratios[8] for line in found if line.what == what and 8 in line.ratios
        }
        if ratios:
            told = ", ".join(f"{name} {times_as(ratio)}" for name, ratio in ratios.items())
            lines.append(f"- {words}: {told}.")
    loops = [line for line in found if line.what.startswith("reading") and 8 in line.ratios]
    if loops:
        told = ", ".join(
            f"{line.what.split()[-1]} {times_as(line.ratios[8])} {line.peer}" for line in loops
        )
        lines.append(
            f"- Reading a video and the poses of 8 people, same network and boxes: {told}."
        )
    lines += [
        f"- The whole loop for one person, with detector every {row.case['every']} frames, "
        f"{row.case['precision']}: {times_as(peer.ratio)} {name}; {answer_of(row, peer)} (ours, "
        "theirs) on the 12 limb joints of LSP."
        for row in document.rows
        if row.group == "pipeline" and row.name == SINGLE and row.case.get("people") == 1
        for name, peer in row.peers.items()
        if peer.ratio is not None
    ]
    slower = [f"{one.what} beside {one.peer}" for one in found if min(one.ratios.values()) < 1]
    slower += [
        f"finding people, {row.case['precision']}, beside {name}"
        for row in document.rows
        if row.group == "pipeline" and row.name == DETECT
        for name, peer in row.peers.items()
        if peer.ratio is not None and peer.ratio < 1
    ]
    if lines and slower:
        lines.append(f"- Slower than a peer somewhere: {'; '.join(slower)}.")
    return lines


def facts(document: Document) -> list[str]:
    machine, timed = document.machine, [row for row in document.rows if row.time]
    loads = [row.load for row in timed if row.load is not None]
    versions = ", ".join(f"{name} {value}" for name, value in document.versions.items())
    theirs = {
        f"{name} {peer.version}"
        for row in document.rows
        for name, peer in row.peers.items()
        if peer.version and name not in SELF
    }
    lines = [
        f"- {machine_line(machine)}, {machine.get('memory_gib')} GiB, {machine.get('system')}",
        f"- Python {machine.get('python')}, {versions}",
    ]
    if theirs:
        lines.append(f"- peers: {', '.join(sorted(theirs))}")
    if loads:
        lines.append(f"- load while it was timed: {min(loads)} to {max(loads)}")
    return [*lines, f"- {document.date}, commit {document.commit}, `{document.command}`"]


Table = Callable[[Sequence[Row]], list[str]]


def of_group(group: str, *, but: Sequence[str] = ()) -> Table:
    """A section's table: all rows of a group, less those of these names."""
    return lambda rows: told([row for row in rows if row.group == group and row.name not in but])


def told(rows: Sequence[Row]) -> list[str]:
    """As `group_table`; that a refused row has no ratios goes without saying."""
    rows = [replace(row, peers={}) if row.refused else row for row in rows]
    return group_table(rows) if rows else []


def counts_tables(rows: Sequence[Row]) -> list[str]:
    """One for each figure, for they have little in common."""
    lines: list[str] = []
    for figure in ("instructions", "allocated_bytes", "launches", "registers"):
        chosen = [row for row in rows if row.group == "counts" and figure in row.figures]
        lines += [*told(chosen), ""] if chosen else []
    return lines[:-1]


def reference_table(rows: Sequence[Row]) -> list[str]:
    return told([row for row in rows if row.group == "ops" and "reference" in row.peers])


SECTIONS: tuple[tuple[str, str, Table], ...] = (
    (HEADLINE, "", headline_table),
    (
        "One person, the whole loop",
        "Reading, detector, pose and following, in a video of one person; all cores. Ours learnt "
        "from the training pictures of Leeds Sports Pose (LSP), whose test pictures give the "
        "accuracies; MediaPipe may not have.",
        lambda rows: single_table([row for row in rows if row.name == SINGLE]),
    ),
    (
        TITLES["pipeline"],
        "By people in the frame, milliseconds of each stage of a frame beside the whole.",
        of_group("pipeline", but=(SINGLE, LOOP)),
    ),
    (
        TITLES["engines"],
        "One row is one engine: its speed, and how right that very engine is.",
        of_group("engines"),
    ),
    (TITLES["accuracy"], "", of_group("accuracy")),
    (TITLES["startup"], "", of_group("startup")),
    (TITLES["memory"], "", of_group("memory")),
    (
        TITLES["counts"],
        "Instructions under valgrind, bytes that a call holds, registers of the GPU's kernels: "
        "what no other work on the machine moves. `× baseline`: the committed count by this one.",
        counts_tables,
    ),
    ("Each operation beside its reference", "", reference_table),
)


def section(machine: Machine, pictures: Mapping[str, str]) -> list[str]:
    """All of one machine."""
    document = machine.newest
    lines = [f"## {machine_line(document.machine)}", "", *facts(document), ""]
    for title, words, table in SECTIONS:
        if found := table(document.rows):
            lines += [f"### {title}", "", *([words, ""] if words else []), *found, ""]
        if title in pictures:
            lines += [f"![{title}]({pictures[title]})", ""]
    if gone := missing(document.rows):
        lines += ["### What is not here, and why", "", *gone, ""]
    if over := history(machine):
        lines += ["### Over time", "", *over, ""]
    return lines


def history(machine: Machine) -> list[str]:
    """The ratios at 8 people of each file, oldest first; else at what there is."""
    keys: dict[tuple[str, str, int], None] = {}
    columns = []
    for document in machine.documents:
        own = {
            (line.what, line.peer, people): ratio
            for line in headline(document.rows)
            for people, ratio in line.ratios.items()
            if people == 8 or (people == 1 and 8 not in line.ratios)
        }
        columns.append(own)
        keys |= dict.fromkeys(own)
    if not keys:
        return []
    heads = ["ratio", "people", *(f"{one.date} {one.commit}" for one in machine.documents)]
    rows = (
        [
            f"{what} beside {peer}",
            str(people),
            *(_ratio(own.get((what, peer, people))) for own in columns),
        ]
        for what, peer, people in keys
    )
    return markdown_table(heads, rows)


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else number(ratio)


def gpu_section(found: Sequence[Machine]) -> list[str]:
    """What a machine with a GPU measured there, or that none did."""
    rows = [row for one in found if one.has_gpu for row in one.newest.rows if row.device == "cuda"]
    rows = [row for row in rows if row.time]
    if not rows:
        return ["## H200", "", f"{GPU}. `benchmarks/gpu.sh` measures on one.", ""]
    parts = []
    for group in dict.fromkeys(row.group for row in rows):
        parts += [f"### {TITLES[group]}, on the GPU", "", *of_group(group)(rows), ""]
    return ["## On a GPU", "", *parts]


def page(found: Sequence[Machine], pictures: Mapping[str, Mapping[str, str]]) -> str:
    """The whole of docs/benchmarks.md.

    Args:
        found: machines with their results.
        pictures: links by the machine's name and the section's title.
    """
    lines = [HEAD]
    if not found:
        lines += ["Nothing has been measured yet.", ""]
    for machine in found:
        if told := answer(machine.newest):
            lines += [f"On {machine_line(machine.newest.machine)}:", "", *told, ""]
    lines.append(METHOD)
    for machine in found:
        lines += section(machine, pictures.get(machine.name, {}))
    lines += gpu_section(found)
    return "\n".join(lines).rstrip("\n") + "\n"


# Pictures


def picture_names(machine: Machine) -> dict[str, str]:
    """Title of a section -> file of its picture, where it has one to show."""
    sweep, engines = sweep_of(machine.newest), engines_of(machine.newest)
    found = {}
    if headline(machine.newest.rows):
        found[HEADLINE] = f"{machine.name}-ratios.png"
    if any(row.time for row in sweep.rows):
        found[TITLES["pipeline"]] = f"{machine.name}-people.png"
    if any(row.time and {"pck", "shift_px"} & set(row.figures) for row in engines.rows):
        found[TITLES["engines"]] = f"{machine.name}-accuracy.png"
    return found


def sweep_of(document: Document) -> Document:
    """Of the loops over people on placed boxes, those that neither draw nor write."""
    kept = (
        row
        for row in document.rows
        if row.group == "pipeline"
        and row.device == "cpu"
        and row.name not in (SINGLE, LOOP)
        and "people" in row.case
        and not (row.case.get("draw") or row.case.get("write"))
    )
    return replace(document, rows=tuple(kept))


def engines_of(document: Document) -> Document:
    """Of the default network alone: the others have random weights."""
    kept = (row for row in document.rows if row.group == "engines" and row.name == NETWORKS[0])
    return replace(document, rows=tuple(kept))


def plot_ratios(document: Document, path: Path) -> Path:
    """A bar for each line of the headline: how many times as long the peer needs.

    Returns:
        The file.

    Raises:
        BackendError: matplotlib is not installed.
    """
    lines = headline(document.rows)[::-1]
    names = [f"{line.what} ({line.typical}) | {line.peer}" for line in lines]
    ratios = [line.ratios[line.typical] for line in lines]
    figure, axes = new_axes((8.0, 1.4 + 0.24 * len(lines)))
    # from 1 on, for a logarithmic axis has no 0 where they could begin
    sides = [COLOURS[0] if ratio >= 1 else COLOURS[1] for ratio in ratios]
    bars = axes.barh(names, [ratio - 1 for ratio in ratios], left=1.0, color=sides)
    axes.bar_label(bars, [times_as(ratio) for ratio in ratios], padding=3, fontsize=8)
    axes.axvline(1.0, color="0.3", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.12, y=0.01)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("time of the peer by ours: right of 1, ours is faster")
    axes.set_title(
        f"Ours beside other projects (people) | peer\n{machine_line(document.machine)}", fontsize=10
    )
    figure.savefig(path)
    return path


def draw(found: Sequence[Machine], folder: Path) -> None:
    """Write the pictures of all machines, and remove those of none."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = set()
    for machine in found:
        names = picture_names(machine)
        if name := names.get(HEADLINE):
            drawn.add(plot_ratios(machine.newest, folder / name))
        if name := names.get(TITLES["pipeline"]):
            drawn.add(plot_latency(sweep_of(machine.newest), folder / name))
        if name := names.get(TITLES["engines"]):
            drawn.add(plot_accuracy(engines_of(machine.newest), folder / name))
    for file in set(folder.glob("*.png")) - drawn:
        file.unlink()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of machines")
    parser.add_argument("--page", type=Path, default=PAGE, help="that is written")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    given = parser.parse_args(arguments)
    found, folder = machines(given.results), given.page.with_suffix("")
    pictures = {
        machine.name: {
            title: f"{folder.name}/{name}" for title, name in picture_names(machine).items()
        }
        for machine in found
    }
    text = page(found, pictures)
    if given.check:
        links = [link for own in pictures.values() for link in own.values()]
        return check(given.page, text, links)
    given.page.write_text(text, encoding="utf-8")
    draw(found, folder)
    return 0


def check(path: Path, text: str, pictures: Sequence[str]) -> int:
    """Status of --check; what is wrong goes to stderr."""
    wrong = []
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        wrong.append(f"{path.name} is not what the results give")
    wrong += [f"{name} is missing" for name in pictures if not (path.parent / name).exists()]
    for line in wrong:
        sys.stderr.write(f"{line}: python benchmarks/page.py\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
