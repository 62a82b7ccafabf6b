"""`fastpose wrap`: generated networks of every kind, from their graph to joints in a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from foreign import constant_network, heatmap_network, picture, simcc_network

import fastpose
from fastpose.cli import main
from fastpose.engines import Manifest, Statement, load_engine, open_engine, wrap_network
from fastpose.engines.verify import verify
from fastpose.errors import EngineError, ModelError
from fastpose.geometry import CONVENTIONS
from fastpose.models import model_spec, trained
from fastpose.skeleton import COCO17, LSP14, MPII16, Skeleton

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

KINDS = ("openvino", "onnxruntime")
ANY = np.ones((17, 3)) / 3  # every joint of coco17 in every colour
WHITE, RED, GREEN, BLUE = (255, 255, 255), (0, 0, 255), (0, 255, 0), (255, 0, 0)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0), "rgb": True}
PLAIN_FLAGS = ["--mean", "0,0,0", "--std", "255,255,255", "--rgb"]
BOX = np.float32([[10, 12, 106, 140]])
DOT = (61.3, 70.6)


def wrap(capsys, *words):
    """Exit status and what was printed on both streams."""
    status = main(["wrap", *map(str, words)])
    out = capsys.readouterr()
    return status, out.out, out.err


def bundle(graph: Path, **stated) -> Path:
    kind = stated.pop("engine", "auto")
    out = graph.with_name("bundle.onnx")
    ranks = [len(port.type.tensor_type.shape.dim) for port in onnx.load(graph).graph.output]
    maps = 4 in ranks and stated.get("output") != "simcc"
    fitting = {"method": "dark"} if maps else {}  # vectors have no such thing
    return wrap_network(graph, Statement(**{**PLAIN, **fitting, **stated}), engine=kind, out=out)


def joints(path: Path, image: np.ndarray, **options) -> fastpose.People:
    with fastpose.Pose(path, detector="none", threads=1, **options) as pose:
        return pose(image, boxes=BOX)


# A dot is found where it is


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_heat_maps_of_every_convention(tmp_path, kind, convention):
    graph = heatmap_network(tmp_path / "net.onnx", ANY, (128, 96), convention=convention)
    manifest = bundle(graph, convention=convention, engine=kind)
    people = joints(manifest, picture({DOT: WHITE}))
    assert people.keypoints.shape == (1, 17, 2)
    np.testing.assert_allclose(people.keypoints[0], np.tile(DOT, (17, 1)), atol=0.1)
    assert (people.scores > 0.3).all()
    spec = Manifest.load(manifest).spec
    assert (spec.name, spec.size, spec.stride, spec.joints) == ("net", (128, 96), 4, COCO17)
    assert (spec.output, spec.convention) == ("heatmap", convention)


@pytest.mark.parametrize(("made", "said"), [("msra", "symmetric"), ("symmetric", "msra")])
def test_a_wrong_convention_shows(tmp_path, made, said):
    graph = heatmap_network(tmp_path / "net.onnx", ANY, (128, 96), convention=made)
    people = joints(bundle(graph, convention=said), picture({DOT: WHITE}))
    assert np.abs(people.keypoints[0] - DOT).max() > 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [1.0, 1.5, 2.0, 3.0])
def test_simcc_of_every_split(tmp_path, kind, split):
    graph = simcc_network(tmp_path / "net.onnx", ANY, (128, 96), split=split)
    manifest = bundle(graph, convention="msra", engine=kind)
    people = joints(manifest, picture({DOT: WHITE}))
    bound = 1.25 * (0.5 / split + 0.05)  # 1.25 frame pixels for an input pixel
    np.testing.assert_allclose(people.keypoints[0], np.tile(DOT, (17, 1)), atol=bound)
    spec = Manifest.load(manifest).spec
    assert (spec.output, spec.split, spec.ports) == ("simcc", split, ("simcc_x", "simcc_y"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [heatmap_network, simcc_network])
@pytest.mark.parametrize("batch", ["any", 1, 3])
def test_more_people_than_a_batch(tmp_path, kind, make, batch):
    """A graph of a fixed batch is run as often as it takes, its last windows being nobody's."""
    graph = make(tmp_path / "net.onnx", ANY, batch=batch)
    manifest = bundle(graph, convention="msra", engine=kind)
    with fastpose.Pose(manifest, detector="none", threads=1) as pose:
        image = picture({DOT: WHITE})
        for count in (1, 2, 5, 40):
            boxes = np.tile(BOX, (count, 1)) + np.linspace(0, 8, count)[:, None]
            people = pose(image, boxes=boxes)
            np.testing.assert_allclose(people.keypoints, np.tile(DOT, (count, 17, 1)), atol=0.8)
        engine = pose.engine
        windows = np.random.default_rng(0).random((7, 3, 64, 48), np.float32)
        together = engine(windows)
        np.testing.assert_allclose(
            together, np.concatenate([engine(w[None]) for w in windows]), rtol=1e-5
        )
        assert together.shape[:2] == (7, 17)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_of_any_size_needs_one(tmp_path, kind):
    graph = heatmap_network(tmp_path / "net.onnx", ANY, (64, 48), spatial=False)
    with pytest.raises(ModelError, match=r"net\.onnx: its input may have any size: state --size"):
        bundle(graph, convention="msra", engine=kind)
    manifest = bundle(graph, convention="msra", size=(64, 48), engine=kind)
    people = joints(manifest, picture({DOT: WHITE}))
    np.testing.assert_allclose(people.keypoints[0], np.tile(DOT, (17, 1)), atol=0.2)


@pytest.mark.parametrize("make", [heatmap_network, simcc_network])
@pytest.mark.parametrize("rgb", [True, False])
def test_own_joints_travel_with_the_bundle(tmp_path, make, rgb):
    """Each joint answers to one channel of the input, so their colours prove the order."""
    file = tmp_path / "three.json"
    file.write_text(
        json.dumps(
            {
                "name": "traffic",
                "joints": ["stop", "go", "turn"],
                "limbs": [["stop", "go"], [1, 2]],
                "flip_pairs": [["stop", 1]],
            }
        )
    )
    graph = make(tmp_path / "net.onnx", np.eye(3), (128, 96))
    manifest = bundle(graph, convention="msra", skeleton=str(file), rgb=rgb, name="lamp")
    file.unlink()  # the bundle stands by itself
    places = [(41.0, 50.0), (70.0, 62.0), (55.0, 101.0)]
    colours = (RED, GREEN, BLUE) if rgb else (BLUE, GREEN, RED)
    people = joints(manifest, picture(dict(zip(places, colours, strict=True))))
    np.testing.assert_allclose(people.keypoints[0], places, atol=1.5)
    traffic = Skeleton("traffic", ("stop", "go", "turn"), ((0, 1), (1, 2)), ((0, 1),), (0.079,) * 3)
    assert people.skeleton == traffic
    assert Manifest.load(manifest).name == "lamp"


def test_output_ports_by_name(tmp_path):
    """Of a square input the shapes cannot tell x from y: the names do, or the statement."""
    image = picture({DOT: WHITE}, (150, 150))
    for names in (("simcc_x", "simcc_y"), ("a", "b")):
        graph = simcc_network(tmp_path / "net.onnx", ANY, (64, 64), ports=("data", *names))
        if names[0] == "a":
            with pytest.raises(
                ModelError, match=r"not clear which outputs .* state --output .*--p"
            ):
                bundle(graph, convention="msra")
        ports = {"ports": names} if names[0] == "a" else {}
        people = joints(bundle(graph, convention="msra", **ports), image)
        np.testing.assert_allclose(people.keypoints[0], np.tile(DOT, (17, 1)), atol=1.5)


def test_other_outputs_do_no_harm_once_it_is_stated(tmp_path):
    shapes = {"z": [1, 17, 64], "y": [1, 17, 128], "x": [1, 17, 96], "maps": [1, 17, 16, 12]}
    graph = constant_network(tmp_path / "net.onnx", shapes)
    for output, ports in (("simcc", ("x", "y")), ("heatmap", ("maps",))):
        manifest = bundle(graph, convention="msra", output=output)
        assert Manifest.load(manifest).spec.ports == ports
        assert np.isnan(joints(manifest, picture({DOT: WHITE})).keypoints).all()


@pytest.mark.parametrize("make", [heatmap_network, simcc_network])
def test_low_precision_is_measured_in_pixels(tmp_path, make):
    engine = load_engine(bundle(make(tmp_path / "net.onnx", ANY), convention="msra"), threads=1)
    windows = np.random.default_rng(0).random((3, 3, 64, 48), np.float32)
    found = verify(engine, engine, [windows], source="noise")
    assert (found.shift.joints, found.shift.largest) == (3 * 17, 0.0)


def test_peak_value_scales_the_scores(tmp_path):
    graph = simcc_network(tmp_path / "net.onnx", ANY, (128, 96))
    image = picture({DOT: WHITE})
    one = joints(bundle(graph, convention="msra"), image).scores
    ten = joints(bundle(graph, convention="msra", peak_value=10.0), image).scores
    np.testing.assert_allclose(one, 10 * ten, rtol=1e-5)


def test_our_own_graph_wrapped_is_our_own_network(tmp_path):
    spec = model_spec("default")
    graph = trained.graph_path(spec.name)
    assert graph is not None
    names = ("skeleton", "convention", "mean", "std", "rgb", "padding", "method", "sigma")
    stated = Statement(**{name: getattr(spec, name) for name in names})
    image = picture({DOT: WHITE, (30, 90): RED, (80, 50): GREEN})
    wrapped = joints(wrap_network(graph, stated, out=tmp_path / "b.onnx"), image)
    own = joints("default", image, precision="f32")
    np.testing.assert_array_equal(wrapped.keypoints, own.keypoints)
    np.testing.assert_array_equal(wrapped.scores, own.scores)


# The command line


def test_wrap_predict_and_eval(tmp_path, capsys):
    """Each pair of lsp14's joints is red or green; the mirror image has the same."""
    red = [0, 5, 6, 11, 8, 9, 13]
    colours = np.tile(np.float64([0, 1, 0]), (14, 1))
    colours[red] = 1, 0, 0
    places = np.tile(np.float64([30.0, 52.0]), (14, 1))
    places[red] = 44.0, 24.0
    folder = tmp_path / "lsp"
    (folder / "images").mkdir(parents=True)
    cv2.imwrite(
        str(folder / "images" / "a.png"), picture({(44, 24): RED, (30, 52): GREEN}, (80, 60))
    )
    row = {"file": "a.png", "split": "test", "width": 60, "height": 80}
    row["joints"] = np.c_[places + 1, np.ones(14)].tolist()  # the set counts from 1
    (folder / "annotations.json").write_text(json.dumps({"images": [row]}))
    for make, said in (
        (heatmap_network, ["--convention", "msra"]),
        (simcc_network, ["--convention", "msra", "--output", "simcc", "--split", "2"]),
    ):
        graph = make(tmp_path / f"{make.__name__}.onnx", colours)
        out = tmp_path / "wrapped.onnx"
        words = [graph, "--skeleton", "lsp14", *said, *PLAIN_FLAGS, "--out", out]
        status, printed, told = wrap(capsys, *words)
        assert status == 0, told
        assert "64x48 RGB" in printed
        assert "14 joints (lsp14)" in printed
        for flip in ([], ["--flip"]):
            data = ["--data", f"lsp:{folder}", "--threads", "1", "--json", *flip]
            assert main(["eval", str(out), *data]) == 0
            metrics = json.loads(capsys.readouterr().out)["metrics"]
            assert metrics["pck@0.2"] == metrics["pck@0.1"] == 100
        for model in (["--model", out], ["--model", out.with_suffix(".json")], ["--engine", out]):
            words = [folder / "images" / "a.png", "--detector", "none", "--out", tmp_path / "out"]
            assert main(["predict", *map(str, [*words, *model, "--threads", 1])]) == 0
            capsys.readouterr()
            lines = (tmp_path / "out" / "a.people.jsonl").read_text().splitlines()
            assert json.loads(lines[0])["model"] == graph.stem
            (person,) = json.loads(lines[1])["people"]
            np.testing.assert_allclose(person["keypoints"], places, atol=2.0)


def test_a_family_states_what_is_known_of_it(tmp_path, capsys):
    def spec(make, family, *more):
        graph = make(tmp_path / "net.onnx", ANY, (256, 192))
        words = [graph, "--like", family, *more, "--json", "--out", tmp_path / "b.onnx"]
        status, out, err = wrap(capsys, *words)
        assert status == 0, err
        return json.loads(out)["spec"]

    rtmpose = spec(simcc_network, "rtmpose")
    assert (rtmpose["output"], rtmpose["convention"], rtmpose["rgb"]) == ("simcc", "msra", True)
    assert rtmpose["mean"] == pytest.approx([123.675, 116.28, 103.53])
    vitpose = spec(heatmap_network, "vitpose")
    assert (vitpose["convention"], vitpose["method"], vitpose["sigma"]) == ("udp", "udp", 2.0)
    hrnet = spec(heatmap_network, "hrnet", "--std", "1,2,3", "--sigma", "3")
    assert (hrnet["convention"], hrnet["method"], hrnet["sigma"]) == ("msra", "quarter", 3.0)
    assert (hrnet["std"], hrnet["padding"]) == ([1, 2, 3], 1.25)
    assert spec(heatmap_network, "simplebaseline", "--bgr")["rgb"] is False
    # the family's way to refine peaks, which nobody stated here, is none of vectors
    assert spec(simcc_network, "hrnet", "--output", "simcc")["output"] == "simcc"


@pytest.mark.parametrize(("convention", "method"), [("udp", "udp"), ("msra", "quarter")])
def test_what_is_taken_where_nothing_is_stated(tmp_path, convention, method):
    graph = heatmap_network(tmp_path / "net.onnx", ANY, (384, 288), convention=convention)
    spec = Manifest.load(bundle(graph, convention=convention, method=None)).spec
    assert (spec.method, spec.sigma) == (method, 3.0)  # 2 on maps of 64 rows, 3 on those of 96
    assert (spec.padding, spec.peak_value) == (1.25, 1.0)


def test_the_lines_of_the_readme(tmp_path, monkeypatch, capsys):
    """On graphs with the names and shapes of the files that they are for."""
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    lines = re.findall(r"^fastpose (wrap .*)$", readme, re.MULTILINE)
    (joints_json,) = re.findall(r'^\{"name": "arm".*\n.*\}$', readme, re.MULTILINE)
    Path("joints.json").write_text(joints_json)
    size = (256, 192)
    simcc_network(Path("end2end.onnx"), ANY, size, batch="batch")
    ports = ("input_0", "output_0")
    heatmap_network(Path("vitpose-b.onnx"), ANY, size, convention="udp", ports=ports)
    heatmap_network(Path("hrnet-w32.onnx"), ANY, size, batch=1, ports=("input", "output"))
    heatmap_network(Path("net.onnx"), np.eye(3), size)
    image = picture({DOT: WHITE})
    for line in lines:
        assert main(line.split()) == 0, capsys.readouterr().err
        people = joints(line.split()[-1], image)
        np.testing.assert_allclose(people.keypoints[0, 0], DOT, atol=1.0)
    assert len(lines) == 4


def test_a_graph_without_its_manifest_says_what_to_do(tmp_path, capsys):
    graph = heatmap_network(tmp_path / "net.onnx", ANY)
    with pytest.raises(EngineError, match=r"without net\.json, .*`fastpose wrap .*net\.onnx --out"):
        open_engine(graph)
    words = ["predict", "x.png", "--detector", "none", "--model", str(graph)]
    assert main(words) == 2
    assert "fastpose wrap" in capsys.readouterr().err


# What is refused


REFUSED = {
    "two unknown outputs": (
        lambda p: constant_network(p, {"a": [1, 17, 16, 12], "b": [1, 17, 16, 12]}),
        [],
        r"not clear which outputs are the joints': a \[1, 17, 16, 12\], b \[1, 17, 16, 12\]; state "
        r"--output heatmap or simcc, and --ports",
    ),
    "one known output and another": (
        lambda p: constant_network(p, {"a": [1, 17, 16, 12], "b": [1, 5]}),
        [],
        "not clear which outputs",
    ),
    "vectors that do not fit": (
        lambda p: constant_network(p, {"simcc_x": [1, 17, 96], "simcc_y": [1, 17, 120]}),
        [],
        r"these are no SimCC vectors of an input of 64x48 \(height x width\)",
    ),
    "vectors of different joints": (
        lambda p: constant_network(p, {"simcc_x": [1, 17, 96], "simcc_y": [1, 16, 128]}),
        [],
        "for the same joints",
    ),
    "vectors in the wrong order": (
        lambda p: simcc_network(p, ANY),
        ["--ports", "simcc_y,simcc_x"],
        "x before y in --ports",
    ),
    "heat maps that are vectors": (
        lambda p: simcc_network(p, ANY),
        ["--output", "heatmap"],
        r"no output has heat maps \[N, joints, height / s, width / s\] for an input of 64x48",
    ),
    "vectors that are heat maps": (
        lambda p: heatmap_network(p, ANY),
        ["--output", "simcc"],
        "no output has SimCC vectors",
    ),
    "a split that is not": (
        lambda p: simcc_network(p, ANY),
        ["--split", "3"],
        "--split 3, but simcc_x has 96 bins for 48 pixels, which is 2",
    ),
    "one name for two vectors": (
        lambda p: simcc_network(p, ANY),
        ["--ports", "simcc_x"],
        r"--ports simcc_x: SimCC vectors are two outputs: give two names, .* has simcc_x \[",
    ),
    "three names for two vectors": (
        lambda p: simcc_network(p, ANY),
        ["--ports", "simcc_x,simcc_y,simcc_x", "--output", "simcc"],
        "give two names, that of x and that of y",
    ),
    "a split of heat maps": (
        lambda p: heatmap_network(p, ANY),
        ["--split", "2"],
        "it gives heat maps, for which --split has no meaning",
    ),
    "a method of vectors": (
        lambda p: simcc_network(p, ANY),
        ["--method", "dark"],
        "it gives SimCC vectors, for which --method has no meaning",
    ),
    "a sigma of vectors": (
        lambda p: simcc_network(p, ANY),
        ["--sigma", "2"],
        "it gives SimCC vectors, for which --sigma has no meaning",
    ),
    "a detector": (
        lambda p: constant_network(p, {"dets": [1, 100, 5], "labels": [1, 100]}),
        [],
        "only top-down pose networks can be wrapped, no detectors and no one-stage networks",
    ),
    "a one-stage network": (
        lambda p: constant_network(p, {"output0": [1, 56, 8400]}, (640, 640)),
        [],
        r"output0 \[1, 56, 8400\]; only top-down",
    ),
    "vectors among other outputs": (
        lambda p: constant_network(p, {"x": [1, 17, 96], "y": [1, 17, 128], "z": [1, 17, 64]}),
        [],
        "not clear which outputs",
    ),
    "a bottom-up network of two maps": (
        lambda p: constant_network(p, {"pafs": [1, 38, 8, 6], "maps": [1, 19, 8, 6]}),
        [],
        "not clear which outputs",
    ),
    "joints of no known set": (
        lambda p: constant_network(p, {"maps": [1, 5, 16, 12]}),
        [],
        "it has 5 joints: state --skeleton: none of the known ones; give a file",
    ),
    "joints of two known sets": (
        lambda p: constant_network(p, {"maps": [1, 14, 16, 12]}),
        [],
        "it has 14 joints: state --skeleton: lsp14 or cpm14",
    ),
    "another number of joints": (
        lambda p: heatmap_network(p, ANY),
        ["--skeleton", "mpii16"],
        "--skeleton mpii16 has 16 joints, the graph gives 17",
    ),
    "an unknown skeleton": (
        lambda p: heatmap_network(p, ANY),
        ["--skeleton", "coco"],
        r"--skeleton must be flic9, .* or a JSON file, got 'coco'",
    ),
    "no such skeleton file": (
        lambda p: heatmap_network(p, ANY),
        ["--skeleton", "{}/none.json"],
        r"none\.json: no skeleton file: No such file",
    ),
    "another size": (
        lambda p: heatmap_network(p, ANY),
        ["--size", "48x64"],
        r"--size 48x64 \(height x width\), but the graph takes \[any, 3, 64, 48\]",
    ),
    "an input that is no picture": (
        lambda p: constant_network(p, {"a": [1]}, (64, 48, 1)),
        [],
        r"the input must be one float32 \[N, 3, h, w\]",
    ),
    "a port that is not there": (
        lambda p: heatmap_network(p, ANY),
        ["--ports", "heatmaps"],
        r"--ports: there is no output 'heatmaps'; it has maps \[1, 17, 16, 12\]",
    ),
    "a small std": (
        lambda p: heatmap_network(p, ANY),
        ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"],
        "--std must be three numbers from 1 in units of 0-255",
    ),
    "an unknown convention": (
        lambda p: heatmap_network(p, ANY),
        ["--convention", "hrnet"],
        "--convention must be one of symmetric, msra, udp, cpn, hourglass, caffe, got 'hrnet'",
    ),
    "an unknown family": (
        lambda p: heatmap_network(p, ANY),
        ["--like", "yolo"],
        "--like must be one of hrnet, simplebaseline, vitpose, rtmpose, got 'yolo'",
    ),
    "a family of another kind": (
        lambda p: heatmap_network(p, ANY),
        ["--like", "rtmpose"],
        "no output has SimCC vectors",
    ),
    "a padding of nothing": (
        lambda p: heatmap_network(p, ANY),
        ["--padding", "0"],
        r"--padding must be above 0, got 0\.0",
    ),
    "a damaged file": (
        lambda p: p.write_bytes(b"\x08\x07not an ONNX file" * 9),
        [],
        r"net\.onnx: not a readable ONNX graph",
    ),
    "no file": (lambda p: None, [], r"net\.onnx: no such file"),
    "a folder that is not there": (
        lambda p: heatmap_network(p, ANY),
        ["--out", "{}/nowhere/b.onnx"],
        r"nowhere/b\.onnx: cannot be written: No such file",
    ),
    "an out that is no .onnx": (
        lambda p: heatmap_network(p, ANY),
        ["--out", "{}/bundle"],
        r"bundle: the file of this engine must end in \.onnx",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_told_in_one_line(tmp_path, capsys, case):
    make, words, message = REFUSED[case]
    make(tmp_path / "net.onnx")
    before = set(tmp_path.iterdir())
    words = [word.replace("{}", str(tmp_path)) for word in words]
    stated = ["--convention", "msra", *PLAIN_FLAGS, "--out", str(tmp_path / "b.onnx")]
    status, out, err = wrap(capsys, tmp_path / "net.onnx", *stated, *words)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("fastpose wrap: ")
    assert re.search(message, err), err
    assert set(tmp_path.iterdir()) == before  # nothing half-written


def test_all_that_must_be_stated_is_told_at_once(tmp_path, capsys):
    graph = heatmap_network(tmp_path / "net.onnx", ANY)
    status, _, err = wrap(capsys, graph, "--out", tmp_path / "b.onnx")
    assert status == 2
    for flag in ("--convention (symmetric, msra", "--mean", "--std", "--rgb or --bgr", "--like hr"):
        assert flag in err
    _, _, err = wrap(capsys, graph, "--like", "simplebaseline", "--out", tmp_path / "b.onnx")
    assert "state --rgb or --bgr;" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "256"], "must be HEIGHTxWIDTH, such as 256x192, got '256'"),
        (["--mean", "1,2"], "must be three numbers with commas, got '1,2'"),
        (["--std", "a,b,c"], "must be three numbers with commas, got 'a,b,c'"),
        (["--rgb", "--bgr"], "not allowed with argument --rgb"),
    ],
)
def test_an_argument_that_cannot_be_read(capsys, words, message):
    with pytest.raises(SystemExit, match="2"):
        main(["wrap", "net.onnx", "--out", "b.onnx", *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_not_finite_are_refused(tmp_path, kind):
    graph = constant_network(tmp_path / "net.onnx", {"maps": [1, 17, 16, 12]}, value=np.nan)
    with pytest.raises(ModelError, match=r"maps is not finite for a plain grey window"):
        bundle(graph, convention="msra", engine=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_a_file_of_their_own_are_refused(tmp_path, kind, monkeypatch):
    (tmp_path / "there").mkdir()
    model = onnx.load(heatmap_network(tmp_path / "net.onnx", ANY))
    graph = tmp_path / "there" / "net.onnx"
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(model, graph, **options)
    said, out = Statement(**PLAIN, convention="msra"), tmp_path / "b.onnx"
    message = r"there/net\.onnx: its copy cannot run: .*beside it are not copied: save .* as one "
    with pytest.raises(EngineError, match=message) as error:
        wrap_network(graph, said, engine=kind, out=out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "there"]
    ((old, new),) = re.findall(r"onnx\.save\(onnx\.load\('(.*)'\), '(.*)'\)", str(error.value))
    monkeypatch.chdir(graph.parent)
    onnx.save(onnx.load(old), new)
    wrap_network(Path(new), said, engine=kind, out=out)


def test_a_file_that_is_no_manifest_is_not_replaced(tmp_path, capsys):
    graph = heatmap_network(tmp_path / "net.onnx", ANY[:2])
    own, out = tmp_path / "own.json", tmp_path / "own.onnx"
    own.write_text('{"name": "own", "joints": ["a", "b"]}')
    words = (graph, "--skeleton", own, "--convention", "udp", *PLAIN_FLAGS, "--out")
    status, _, err = wrap(capsys, *words, out)
    assert status == 2
    assert f"{own}: is there already and is no manifest" in err
    assert own.read_text() == '{"name": "own", "joints": ["a", "b"]}'
    assert not out.exists()
    for _ in range(2):  # its own manifest is replaced
        assert wrap(capsys, *words, tmp_path / "bundle.onnx")[0] == 0
    (tmp_path / "other.json").mkdir()
    assert wrap(capsys, *words, tmp_path / "other.onnx")[0] == 2
    assert not (tmp_path / "other.onnx").exists()


def test_a_graph_that_was_changed_after_it_was_wrapped(tmp_path):
    manifest = bundle(heatmap_network(tmp_path / "net.onnx", ANY), convention="msra")
    heatmap_network(manifest.with_suffix(".onnx"), ANY * 2)
    with pytest.raises(EngineError, match=r"files: bundle\.onnx: the manifest has"):
        load_engine(manifest)


SKELETON = {"name": "own", "joints": ["a", "b", "c"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name must be a text, got ''"),
        ({"name": "coco17"}, "the name coco17 is that of a known one"),
        ({"joints": []}, "joints must be a list of names"),
        ({"joints": ["a", "b", "a"]}, "joints must differ from each other"),
        ({"limbs": [["a", "d"]]}, r"limbs must be pairs of joints, .* got \['a', 'd'\]"),
        ({"limbs": [[1, 3]]}, r"index 0 to 2, got \[1, 3\]"),
        ({"limbs": "ab"}, "limbs must be pairs of joints, .* got 'ab'"),
        ({"flip_pairs": [[0, 0]]}, r"flip_pairs must be pairs of joints, .* got \[0, 0\]"),
        ({"flip_pairs": [[0, 1], [1, 2]]}, "flip_pairs must have a joint once"),
        ({"sigmas": [0.1]}, "sigmas must be 3 numbers"),
        ({"sigmas": [0.1, 0.1, -1]}, "sigmas must be positive and finite"),
        ({"edges": []}, "expected an object with .*limbs"),
    ],
)
def test_a_skeleton_file_that_is_none(tmp_path, changes, message):
    graph = heatmap_network(tmp_path / "net.onnx", np.eye(3))
    file = tmp_path / "own.json"
    file.write_text(json.dumps({**SKELETON, **changes}))
    with pytest.raises(ModelError, match=rf"own\.json: not a skeleton: .*{message}"):
        bundle(graph, convention="msra", skeleton=str(file))
    file.write_text("{")
    with pytest.raises(ModelError, match=r"own\.json: not a skeleton: "):
        bundle(graph, convention="msra", skeleton=str(file))


@pytest.mark.parametrize("known", [COCO17, LSP14, MPII16])
def test_known_skeletons_by_name(tmp_path, known):
    graph = heatmap_network(tmp_path / "net.onnx", np.ones((len(known), 3)))
    spec = Manifest.load(bundle(graph, convention="msra", skeleton=known.name)).spec
    assert (spec.joints, spec.custom) == (known, None)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("output", "paf", "output must be heatmap or simcc or parts or cascade or joints, got"),
        ("split", 0, "split must be positive and finite, got 0"),
        ("mean", None, "mean must be 3 numbers, finite, got None"),
        ("std", [0, 1, 1], r"std must be 3 numbers, positive and finite, got \(0, 1, 1\)"),
        ("std", ["a", 1, 1], "std must be 3 numbers, positive and finite"),
        ("padding", -1, "padding must be positive and finite, got -1"),
        ("padding", [1.1, 0], "padding must be 2 numbers, positive and finite"),
        ("convention", "pixels", "convention must be one of symmetric, msra, .* got 'pixels'"),
        ("method", "guess", "method must be one of argmax, .* got 'guess'"),
        ("rgb", "no", "rgb must be true or false, got 'no'"),
        ("rgb", 1, "rgb must be true or false, got 1"),
        ("stride", 0, "must be positive whole numbers"),
        ("size", "64x48", "must be positive whole numbers, got '64x48' and 4"),
        ("custom", {"name": "x", "joints": ["a"]}, "unknown skeleton 'coco17'"),
        ("custom", {"name": "coco17"}, "joints must be a list of names"),
        ("ports", ["maps", "more"], r"there is no output 'more'; it has: \['maps'\]"),
        ("size", [64, 64], r"the input must be one float32 \[any, 3, 64, 64\]"),
    ],
)
def test_a_manifest_that_was_changed(tmp_path, field, value, message):
    manifest = bundle(heatmap_network(tmp_path / "net.onnx", ANY), convention="msra")
    values = json.loads(manifest.read_text())
    values["spec"][field] = value
    manifest.write_text(json.dumps(values))
    with pytest.raises(EngineError, match=message):
        load_engine(manifest, threads=1)


@pytest.mark.parametrize("kind", KINDS)
def test_axes_that_the_graph_leaves_open_are_checked_when_they_are_known(tmp_path, kind):
    graph = heatmap_network(tmp_path / "net.onnx", ANY, spatial=False)
    manifest = bundle(graph, convention="msra", size=(64, 48), engine=kind)
    values = json.loads(manifest.read_text())
    values["spec"]["stride"] = 8
    manifest.write_text(json.dumps(values))
    with pytest.raises(EngineError, match=r"bundle\.onnx: ") as error:
        load_engine(manifest, threads=1).run(1)
    assert "\n" not in str(error.value)
