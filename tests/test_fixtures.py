"""Windows and pictures to verify and calibrate with: built-in, of a folder, of annotated sets."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fastpose import fixtures
from fastpose.crop import Place, cut_places
from fastpose.engines import open_engine
from fastpose.errors import DataError
from fastpose.evaluate import evaluate_model, predict_joints
from fastpose.models import model_spec
from fastpose.models.joints import locate_joints

SPEC = model_spec("cpn-light")
ROOT = Path(__file__).parents[1]
PHOTOGRAPHER = Path(__file__).with_name("photographer.jpg")


@pytest.fixture(scope="module")
def engine():
    opened = open_engine("cpn-light", kind="openvino", precision="f32", threads=1)
    yield opened
    opened.close()


# Built in


def test_the_built_in_people_suffice(engine):
    pictures = fixtures.windows(SPEC)
    assert (pictures.name, pictures.truth, pictures.skipped) == ("built-in", None, 0)
    assert 32 <= len(pictures) <= 64
    sure = 0
    for windows in pictures.batches(8):
        affines = np.tile(np.eye(2, 3), (len(windows), 1, 1))
        _, scores = locate_joints(engine(windows), affines, SPEC)
        sure += int((scores > 0.3).sum())
    assert sure >= 600  # a bound of 0.5 % of them is three joints


def test_the_built_in_people_are_the_same_every_time_and_all_different():
    windows = fixtures.windows(SPEC).windows
    assert windows.dtype == np.float32
    assert windows.shape[1:] == (3, *SPEC.size)
    np.testing.assert_array_equal(windows, fixtures.windows(SPEC).windows)
    assert len(np.unique(windows[:, :, ::16, ::16].reshape(len(windows), -1), axis=0)) == len(
        windows
    )
    few = fixtures.windows(SPEC, limit=5)
    np.testing.assert_array_equal(few.windows, windows[:5])


def test_a_network_of_several_views_sees_each_person_once():
    spec = replace(SPEC, views=(0.7, 1.0, 1.3))
    assert fixtures.windows(spec).spec == SPEC
    np.testing.assert_array_equal(
        fixtures.windows(spec, limit=2).windows, fixtures.windows(SPEC, limit=2).windows
    )


def test_batches_are_the_windows():
    pictures = fixtures.windows(SPEC, limit=7)
    parts = list(pictures.batches(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(parts), pictures.windows)


def test_every_built_in_picture_has_terms_and_people():
    document = json.loads((fixtures.PICTURES / "people.json").read_text())
    files = {path.name for path in fixtures.PICTURES.glob("*.jpg")}
    assert {row["file"] for row in document["pictures"]} == files
    terms = [re.compile(name.replace("*", r"\d")) for name in document["terms"]]
    for file, boxes in fixtures.built_in_pictures():
        assert any(pattern.fullmatch(file.name) for pattern in terms)
        height, width = cv2.imread(str(file)).shape[:2]
        assert len(boxes) > 0
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= [width, height] * 2).all()
    assert sum(path.stat().st_size for path in fixtures.PICTURES.iterdir()) < 300_000


def test_a_scene_can_be_drawn_again():
    path = ROOT / "scripts" / "draw_people.py"
    if not path.exists():
        pytest.skip("needs the checkout's scripts")
    script = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location("draw_people", path)
    )
    script.__spec__.loader.exec_module(script)
    drawn, boxes = script.draw_scene(3)
    kept = dict(fixtures.built_in_pictures())[fixtures.PICTURES / "scene-3.jpg"]
    np.testing.assert_array_equal(boxes, kept)
    _, packed = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, script.QUALITY])
    wanted = cv2.imread(str(fixtures.PICTURES / "scene-3.jpg")).astype(int)
    # another version of OpenCV rounds in its own way
    assert np.abs(cv2.imdecode(packed, cv2.IMREAD_COLOR) - wanted).mean() < 1


# A folder


@pytest.fixture
def folder(tmp_path):
    """A photograph of a man, an empty picture, one that is cut off, and a text."""
    made = tmp_path / "mine"
    made.mkdir()
    content = PHOTOGRAPHER.read_bytes()
    (made / "1.jpg").write_bytes(content)
    cv2.imwrite(str(made / "2.png"), np.full((60, 80, 3), 128, np.uint8))
    (made / "3.jpg").write_bytes(content[:5000])
    (made / "4.txt").write_text("no picture")
    return made


def test_people_of_a_folder_are_found_and_what_is_unreadable_is_told(folder):
    with pytest.warns(UserWarning, match=r"1 of 3 pictures are left out; the first: .*3\.jpg"):
        pictures = fixtures.windows(SPEC, folder, threads=1)
    assert (pictures.name, len(pictures), pictures.skipped) == ("mine", 2, 1)
    man, nobody = pictures.places
    height, width = cv2.imread(str(PHOTOGRAPHER)).shape[:2]
    x0, y0, x1, y1 = man.box
    assert 0.3 * width * height < (x1 - x0) * (y1 - y0)
    assert nobody.box is None  # the whole picture, unpadded: only its grey is seen
    window = pictures.windows[1].transpose(1, 2, 0) * SPEC.std + SPEC.mean
    np.testing.assert_allclose(window[48:144, 1:-1], 128, atol=0.01)


@pytest.mark.parametrize("read", [lambda f: fixtures.windows(SPEC, f), fixtures.scenes])
def test_folders_that_cannot_be_used(tmp_path, read):
    with pytest.raises(DataError, match=r"nowhere: no such folder of pictures"):
        read(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(DataError, match="has no picture"):
        read(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8 and no more")
    with pytest.raises(DataError, match=r"no picture can be read; the first: .*a\.jpg"):
        read(tmp_path)


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_a_limit_that_is_none(limit):
    for read in (lambda: fixtures.windows(SPEC, limit=limit), lambda: fixtures.scenes(limit=limit)):
        with pytest.raises(ValueError, match="limit must be a whole number from 1"):
            read()


def test_of_many_pictures_some_are_taken_from_everywhere(tmp_path):
    for i in range(20):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((8, 8, 3), i, np.uint8))
    chosen = fixtures.scenes(tmp_path, limit=5)
    assert [file.name for file in chosen.files] == ["0.png", "4.png", "9.png", "14.png", "19.png"]
    assert [int(image[0, 0, 0]) for image in chosen] == [0, 4, 9, 14, 19]
    assert len(fixtures.scenes(limit=3)) == 3


# Annotated sets


def lsp(folder: Path, count: int = 3) -> Path:
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        height, width = 120 + 10 * i, 90
        image = rng.integers(0, 255, (height, width, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{i}.png"), image)
        joints = np.concatenate((rng.uniform(10, 80, (14, 2)), np.ones((14, 1))), axis=1)
        row = {"file": f"{i}.png", "split": "test", "width": width, "height": height}
        rows.append(row | {"joints": joints.tolist()})
    (folder / "annotations.json").write_text(json.dumps({"images": rows}))
    return folder


def test_an_annotated_set_tells_what_evaluation_tells(tmp_path, engine):
    """The joints of its windows, taken back to the pictures, give the very same figure."""
    pictures = fixtures.windows(SPEC, f"lsp:{lsp(tmp_path / 'lsp')}")
    assert (pictures.name, len(pictures)) == ("lsp", 3)
    windows = pictures.windows
    points, scores = locate_joints(engine(windows), np.tile(np.eye(2, 3), (3, 1, 1)), SPEC)
    data = pictures.truth.data
    truth = replace(
        data,
        samples=tuple(
            replace(s, joints=p)
            for s, p in zip(data.samples, predict_joints(engine, data), strict=True)
        ),
    )
    found = fixtures.Truth(truth, SPEC)(points, scores)
    assert found == ("pck@0.2", 100.0)  # of what evaluation finds itself
    name, value = pictures.truth(points, scores)
    assert value == pytest.approx(evaluate_model(engine, data).metrics[name])
    assert pictures.truth(points + 500, scores)[1] == 0
    assert len(fixtures.windows(SPEC, f"lsp:{tmp_path / 'lsp'}", limit=2)) == 2


def coco(folder: Path) -> Path:
    """Two pictures, of which the second has two people, out of order."""
    (folder / "images").mkdir(parents=True)
    for number in (1, 2):
        image = np.random.default_rng(number).integers(0, 255, (100, 140, 3), np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), image)
    people = []
    for number, picture in enumerate((2, 1, 2)):
        box = [10 + 40 * number, 20, 30, 60]
        joints = [[box[0] + k, box[1] + 3 * k, 2] for k in range(17)]
        people.append(
            {
                "id": number + 1,
                "image_id": picture,
                "category_id": 1,
                "bbox": box,
                "area": 1800,
                "iscrowd": 0,
                "num_keypoints": 17,
                "keypoints": np.ravel(joints).tolist(),
            }
        )
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 140, "height": 100} for n in (1, 2)],
        "annotations": people,
        "categories": [
            {"id": 1, "name": "person", "keypoints": list(model_spec("cpn50").joints.joints)}
        ],
    }
    path = folder / "people.json"
    path.write_text(json.dumps(document))
    return path


def test_a_coco_set_is_scored_by_its_average_precision(tmp_path):
    pytest.importorskip("faster_coco_eval")
    spec = model_spec("cpn50")
    pictures = fixtures.windows(spec, f"coco:{coco(tmp_path)}")
    assert [place.file.name for place in pictures.places] == ["1.png", "2.png", "2.png"]
    true = {tuple(s.box): s.joints for s in pictures.truth.data.samples}
    _, affines = cut_places(pictures.places, spec.window)
    points = np.stack([true[tuple(place.box)] for place in pictures.places]).astype(np.float64)
    linear, offset = affines[:, :, :2], affines[:, :, 2]
    inside = np.linalg.solve(linear[:, None], (points - offset[:, None])[..., None])[..., 0]
    scores = np.ones((3, 17), np.float32)
    assert pictures.truth(inside.astype(np.float32), scores) == ("ap", pytest.approx(100))
    wrong = inside[::-1].astype(np.float32) + 50
    assert pictures.truth(wrong, scores)[1] < 50


def test_a_set_whose_joints_are_not_known_has_people_all_the_same(tmp_path):
    with pytest.warns(UserWarning, match=r"coco: the accuracy is not compared: .* lack nose"):
        pictures = fixtures.windows(SPEC, f"coco:{coco(tmp_path)}")
    assert (len(pictures), pictures.truth) == (3, None)
    assert pictures.windows.shape == (3, 3, *SPEC.size)


@pytest.mark.parametrize("text", ["lsp:nowhere", "boxes:nowhere"])
def test_sets_that_are_not_there(text):
    with pytest.raises(DataError):
        fixtures.windows(SPEC, text)


# Cutting


def test_places_are_turned_mirrored_and_brightened(tmp_path):
    image = np.random.default_rng(0).integers(0, 100, (90, 70, 3), np.uint8)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), image)
    box = np.float32([10, 15, 60, 75])
    plain, mirrored, bright, turned = (
        cut_places([Place(file, box, **more)], SPEC.window)[0][0]
        for more in ({}, {"flip": True}, {"gain": 2.0}, {"rotation": 180.0})
    )
    np.testing.assert_allclose(mirrored, plain[:, :, ::-1], atol=1e-3)
    np.testing.assert_allclose(turned, plain[:, ::-1, ::-1], atol=2e-2)
    shift = np.array(SPEC.mean).reshape(3, 1, 1), np.array(SPEC.std).reshape(3, 1, 1)
    lights = [(w * shift[1] + shift[0])[:, 60:130, 50:110] for w in (plain, bright)]
    np.testing.assert_allclose(lights[1], 2 * lights[0], atol=0.1)


def test_int8_is_calibrated_with_the_training_part(tmp_path, monkeypatch):
    from fastpose import bundles

    asked = []

    def opened(text, split="test"):
        asked.append((text, split))
        raise DataError("enough")

    monkeypatch.setattr(fixtures, "open_poses", opened)
    with pytest.raises(DataError, match="enough"):
        bundles.build_engine("cpn-light", precision="int8", calibration="lsp:here")
    with pytest.raises(DataError, match="enough"):
        fixtures.windows(SPEC, "lsp:here")
    assert asked == [("lsp:here", "train"), ("lsp:here", "test")]
