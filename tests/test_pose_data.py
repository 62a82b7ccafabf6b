"""Readers of people with joints in the formats of COCO, MPII and FLIC."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from test_box_data import annotation, picture

from fastpose.datasets import (
    CocoData,
    observer_centric,
    open_data,
    open_poses,
    read_coco_results,
    read_predictions,
)
from fastpose.errors import DataError
from fastpose.skeleton import COCO17, FLIC9, MPII16

RNG = np.random.default_rng(0)

# ---- COCO ----------------------------------------------------------------------------------------

PERSON = {"id": 3, "name": "person", "keypoints": list(COCO17.joints)}


def person(image, bbox=(10, 20, 30, 40), flags=(2,) * 17, **more):
    joints = np.column_stack((np.arange(17) + 10, np.arange(17) + 20, flags))
    joints[joints[:, 2] == 0] = 0
    return annotation(image, bbox, keypoints=joints.reshape(-1).tolist(), area=900.0) | more


def write_coco(path, images, people, categories=(PERSON,)):
    content = {"images": images, "annotations": people, "categories": list(categories)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return f"coco:{path}"


def test_coco_people_are_samples_with_a_box(tmp_path):
    flags = (2, 1, 0, *(2,) * 14)
    people = [person(8, (-5, 20, 30, 40), flags), person(5), person(8, iscrowd=1)]
    text = write_coco(tmp_path / "some.json", [picture(5), picture(8), picture(9)], people)
    data = open_data(text)
    assert isinstance(data, CocoData)
    assert (data.name, data.skeleton, data.split, data.category) == ("coco", COCO17, "some", 3)
    assert (len(data), data.left_out, len(data.people)) == (2, 1, 3)
    sample = data.samples[0]
    assert sample.image == tmp_path / "images" / "8.jpg"
    assert sample.size == (80, 100)
    np.testing.assert_array_equal(sample.box, [0, 20, 25, 60])
    np.testing.assert_array_equal(sample.joints[:2], [(10, 20), (11, 21)])
    assert np.flatnonzero(~sample.labelled).tolist() == [2]
    assert np.flatnonzero(~sample.visible).tolist() == [1, 2]
    assert {number: path.name for number, path in data.pictures.items()} == {
        5: "5.jpg", 8: "8.jpg", 9: "9.jpg",
    }  # fmt: skip
    assert data.people[2]["iscrowd"] == 1


def test_people_without_joints_or_area_are_no_samples_but_are_evaluated(tmp_path):
    bare = person(5)
    del bare["keypoints"]
    people = [person(5, flags=(0,) * 17), person(5, (200, 200, 5, 5)), bare]
    data = open_data(write_coco(tmp_path / "a.json", [picture(5)], people))
    assert (len(data), data.left_out) == (0, 3)
    assert [p["num_keypoints"] for p in data.people] == [0, 17, 0]


def test_the_first_pictures_keep_their_people_alone(tmp_path):
    people = [person(8), person(5), person(8, iscrowd=1), person(5, flags=(0,) * 17)]
    text = write_coco(tmp_path / "a.json", [picture(5), picture(8)], people)
    data = open_data(text)
    few = data.head(1)
    assert (data.left_out, few.left_out, data.head(None).left_out) == (2, 1, 2)
    assert list(few.pictures) == [5]
    assert [s.image.name for s in few.samples] == ["5.jpg"]
    assert [p["image_id"] for p in few.people] == [5, 5]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("a.json", "images"),
        ("annotations/a.json", "images"),
        ("annotations/person_keypoints_val2017.json", "val2017"),
    ],
)
def test_where_pictures_are_looked_for(tmp_path, file, folder):
    (tmp_path / folder).mkdir()
    text = write_coco(tmp_path / file, [picture(5)], [person(5)])
    assert open_data(text).samples[0].image == tmp_path / folder / "5.jpg"
    given = open_data(text, images=tmp_path / "elsewhere")
    assert given.samples[0].image == tmp_path / "elsewhere" / "5.jpg"


HUGE = 10**400  # JSON has such numbers, floating point has not


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": [PERSON, {"id": 4, "name": "person"}]}, "named person: 3 and 4"),
        ({"categories": [PERSON | {"keypoints": ["nose"]}]}, "the 17 joints .* got .'nose'"),
        ({"categories": [PERSON | {"keypoints": 5}]}, "the 17 joints .* got 5"),
        ({"annotations": [person(5, keypoints=[1, 2])]}, "keypoints must be 51 finite numbers"),
        ({"annotations": [person(5, keypoints=[float("nan")] * 51)]}, "must be 51 finite"),
        ({"annotations": [person(5, area=None)]}, "area must be a finite number from 0, got None"),
        ({"annotations": [person(5, area=-1)]}, "area must be a finite number from 0, got -1"),
        ({"annotations": [person(5, area=HUGE)]}, "area must be a finite number"),
        ({"annotations": [person(5, keypoints=[HUGE] * 51)]}, "must be 51 finite numbers"),
        ({"annotations": [person(5, keypoints=[1e300] * 51)]}, "must be 51 finite numbers"),
        ({"annotations": [person(5, keypoints=["1"] * 51)]}, "must be 51 finite numbers"),
        ({"annotations": [person(5, bbox=[1])]}, "bbox must be"),
        ({"annotations": [person(6)]}, "no image has the id 6"),
    ],
)
def test_a_faulty_coco_file_is_told_in_one_line(tmp_path, change, message):
    path = tmp_path / "a.json"
    text = write_coco(path, [picture(5)], [person(5)])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as caught:
        open_data(text)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 150


RESULT = {"image_id": 5, "category_id": 3, "keypoints": [1.0] * 51, "score": 0.5}


def test_results_of_other_categories_are_passed_over(tmp_path):
    data = open_data(write_coco(tmp_path / "a.json", [picture(5)], [person(5)]))
    path = tmp_path / "r.json"
    path.write_text(json.dumps([RESULT, RESULT | {"category_id": 1}]))
    assert read_coco_results(path, data) == [RESULT]


def test_results_keep_what_is_evaluated_alone(tmp_path):
    data = open_data(write_coco(tmp_path / "a.json", [picture(5)], [person(5)]))
    path = tmp_path / "r.json"
    boxed = RESULT | {"bbox": [1.0, 2.0, 3.0, 4.0]}
    path.write_text(json.dumps([boxed | {"segmentation": "?"}, RESULT | {"bbox": []}]))
    assert read_coco_results(path, data) == [boxed, RESULT]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": 1}, "expected a JSON list of COCO results"),
        ([5], "result 0: expected image_id, category_id, keypoints and score"),
        ([{k: v for k, v in RESULT.items() if k != "keypoints"}], "result 0: expected image_id"),
        ([RESULT, RESULT | {"image_id": 7}], "result 1: no image of a has the id 7"),
        ([RESULT | {"score": "high"}], "score must be a finite number, got 'high'"),
        ([RESULT | {"score": float("nan")}], "score must be a finite number"),
        ([RESULT | {"score": HUGE}], "score must be a finite number"),
        ([RESULT | {"keypoints": [1] * 34}], "keypoints must be 51 finite numbers"),
        ([RESULT | {"keypoints": [[1, 2, 3]] * 17}], "keypoints must be 51 finite numbers"),
        ([RESULT | {"keypoints": ["1"] * 51}], "keypoints must be 51 finite numbers"),
        ([RESULT | {"bbox": "wide"}], "bbox must be .* got 'wide'"),
    ],
)
def test_faulty_results_are_told_in_one_line(tmp_path, content, message):
    data = open_data(write_coco(tmp_path / "a.json", [picture(5)], [person(5)]))
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_coco_results(path, data)


# ---- MPII ----------------------------------------------------------------------------------------

COUNT = 5
JOINTS = RNG.uniform(20, 90, (COUNT, 16, 2)).round(2)
JOINTS[1, 6] = 0  # not labelled
VISIBLE = np.ones((COUNT, 16))
VISIBLE[0, 3] = VISIBLE[1, 6] = 0
CENTRE = RNG.uniform(40, 60, (COUNT, 2)).round(2)
SCALE = np.array([1.0, 2.0, 3.0, 0.5, 1.5])
VALIDATION = np.array([True, True, False, True, False])
NAMES = np.array([f"{k}.jpg" for k in range(COUNT)])
HEADS = np.where(VALIDATION, np.arange(COUNT) + 10.0, np.nan)


def mpii_arrays(folder, **change):
    arrays = {
        "joints": np.concatenate((JOINTS, VISIBLE[..., None]), axis=-1).astype(np.float32),
        "center": CENTRE,
        "scale": SCALE,
        "is_val": VALIDATION,
        "image": NAMES,
        "image_wh": np.tile([100, 80], (COUNT, 1)),
        "head_size": HEADS,
    } | change
    np.savez(folder / "mpii_16joints.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder / "mpii_16joints.npz"


def mpii_hourglass(folder):
    people = [
        {
            "img_paths": str(NAMES[k]),
            "isValidation": float(VALIDATION[k]),
            "objpos": CENTRE[k].tolist(),
            "scale_provided": SCALE[k],
            "joint_self": np.column_stack((JOINTS[k], VISIBLE[k])).tolist(),
        }
        for k in range(COUNT)
    ]
    path = folder / "mpii_annotations.json.gz"
    path.write_bytes(gzip.compress(json.dumps(people).encode()))
    return path


def mpii_truth(folder, names=NAMES[VALIDATION]):
    joints = JOINTS[VALIDATION] + 1000
    missing = np.zeros((3, 16), bool)
    missing[0, 5] = True
    heads = np.tile([[0.0, 0.0], [30.0, 40.0]], (3, 1, 1))
    path = folder / "mpii_val_reference.npz"
    np.savez(path, gt=joints, missing=missing, headboxes=heads, image=names)
    return path


def check_mpii(data):
    assert [s.image.name for s in data.samples] == ["0.jpg", "1.jpg", "3.jpg"]
    assert (data.name, data.skeleton, data.split) == ("mpii", MPII16, "val")
    first, second, _ = data.samples
    np.testing.assert_allclose(first.joints, JOINTS[0] - 1, atol=1e-4)  # the file counts from 1
    assert np.flatnonzero(~first.visible).tolist() == [3]
    assert first.labelled.all()
    assert np.flatnonzero(~second.labelled).tolist() == [6]
    # 200 scale wide, 15 scale below the centre
    middle = CENTRE[1] - 1 + (0, 30)
    np.testing.assert_allclose(second.box, [*middle - 200, *middle + 200], atol=1e-3)


@pytest.mark.parametrize("form", [mpii_arrays, mpii_hourglass])
def test_mpii_in_both_forms_and_in_its_folder(tmp_path, form):
    path = form(tmp_path)
    for place in (path, tmp_path):
        check_mpii(open_poses(f"mpii:{place}", "val"))
    assert open_poses(f"mpii:{path}", "test").split == "val"
    train = open_poses(f"mpii:{path}", "train")
    assert [s.image.name for s in train.samples] == ["2.jpg", "4.jpg"]
    assert train.samples[0].image.parent == tmp_path / "images"


def test_mpii_heads_and_sizes(tmp_path):
    data = open_poses(f"mpii:{mpii_arrays(tmp_path)}")
    assert [s.head_size for s in data.samples] == [10, 11, 13]
    assert data.samples[0].size == (80, 100)
    heads = [s.head_size for s in open_poses(f"mpii:{mpii_hourglass(tmp_path)}").samples]
    assert np.isnan(heads).all()


@pytest.mark.parametrize("form", [mpii_arrays, mpii_hourglass])
def test_the_truth_of_the_evaluation_is_taken_where_it_lies_beside(tmp_path, form):
    form(tmp_path)
    mpii_truth(tmp_path)
    data = open_poses(f"mpii:{tmp_path}")
    np.testing.assert_allclose(data.samples[2].joints, JOINTS[3] + 999, atol=1e-3)
    first, second, _ = data.samples
    assert np.flatnonzero(~first.labelled).tolist() == [5]
    # hidden in the annotations, or not labelled in the truth, which labels what they do not
    assert np.flatnonzero(~first.visible).tolist() == [3, 5]
    assert second.labelled.all()
    assert np.flatnonzero(~second.visible).tolist() == [6]
    assert [s.head_size for s in data.samples] == [30, 30, 30]  # 0.6 of the diagonal, 50
    assert data.samples[0].box is not None
    train = open_poses(f"mpii:{tmp_path}", "train")
    np.testing.assert_allclose(train.samples[0].joints, JOINTS[2] - 1, atol=1e-4)


def test_the_truth_of_the_evaluation_alone_has_no_boxes(tmp_path):
    data = open_poses(f"mpii:{mpii_truth(tmp_path)}")
    assert len(data) == 3
    assert data.samples[0].box is None


def test_the_truth_of_other_people_is_refused(tmp_path):
    mpii_arrays(tmp_path)
    mpii_truth(tmp_path, names=NAMES[:3])
    with pytest.raises(DataError, match="not the validation people of mpii_16joints"):
        open_poses(f"mpii:{tmp_path}")


def test_mpii_as_a_list_of_hrnet(tmp_path):
    people = [
        {
            "image": "a.jpg",
            "joints": JOINTS[1].tolist(),
            "joints_vis": VISIBLE[1].astype(int).tolist(),
            "center": [50.0, 60.0],
            "scale": 0.5,
        }
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(people))
    for split in ("train", "val"):  # it does not say which it is
        (sample,) = open_poses(f"mpii:{tmp_path}", split).samples
        assert np.flatnonzero(~sample.labelled).tolist() == [6]
        np.testing.assert_allclose(sample.box, [-1, 16.5, 99, 116.5])


def test_people_without_a_picture_in_the_folder_are_left_out(tmp_path):
    path = mpii_arrays(tmp_path)
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "3.jpg").touch()
    data = open_data(f"mpii:{path}", images=tmp_path / "few")
    assert [s.image for s in data.samples] == [tmp_path / "few" / "3.jpg"]
    assert data.left_out == 2
    with pytest.raises(DataError, match="no person with a picture in"):
        open_data(f"mpii:{path}", images=tmp_path / "none")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": None}, "there is no 'scale'"),
        (
            {"joints": np.zeros((COUNT, 14, 3))},
            r"joints must be numbers \[N, 16, 3\], got \[5, 14, 3\]",
        ),
        ({"joints": np.float64(3)}, r"joints must be numbers \[N, 16, 3\], got \[\]"),
        ({"joints": np.full((COUNT, 16, 3), 1e300)}, r"joints must be below 1e\+30, got 1e\+300"),
        ({"center": np.zeros((COUNT, 3))}, r"center must be numbers \[N, 2\], got \[5, 3\]"),
        ({"center": np.zeros((4, 2))}, r"scale must be \[4\] for as many centers, got \[5\]"),
        ({"scale": np.full(COUNT, np.inf)}, r"scale must be below 1e\+30, got inf"),
        ({"scale": np.full(COUNT, "wide")}, r"scale must be numbers \[N\], got <U4"),
        ({"head_size": np.zeros(4)}, r"head must be \[5\], got \[4\]"),
        (
            {"image_wh": np.zeros((COUNT, 2, 2))},
            r"image_wh must be numbers \[N, 2\], got \[5, 2, 2",
        ),
        ({"image_wh": np.full((COUNT, 2), np.nan)}, "image_wh must be from 1, got nan"),
        ({"is_val": np.ones((COUNT, 2), bool)}, r"is_val must be numbers \[N\], got \[5, 2\]"),
        ({"is_val": np.zeros(COUNT, bool)}, "no person of split 'val'"),
    ],
)
def test_faulty_mpii_arrays_are_told_in_one_line(tmp_path, change, message):
    path = mpii_arrays(tmp_path, **change)
    with pytest.raises(DataError, match=message) as caught:
        open_poses(f"mpii:{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


POINTS = json.dumps([[1, 2]] * 16).encode()
HRNET = b'[{"image": "a", "joints": %s, "joints_vis": %s, %%s}]' % (
    POINTS,
    json.dumps([1] * 16).encode(),
)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.npz", None, "No such file"),
        ("a.npz", b"text", "expected a .npz file of arrays"),
        ("a.npz", b"PK\x03\x04 cut off", "expected a .npz file of arrays"),
        ("a.json", b"text", "no JSON"),
        ("a.json", b"[]", "expected a JSON list of people"),
        ("a.json", b"[5]", "expected a JSON list of people"),
        ("a.json", b'[{"joint_self": []}, {}]', "there is no 'joint_self'"),
        ("a.json", b'[{"joints": 1}]', r"joints must be numbers \[N, 16, 2\], got \[1\]"),
        ("a.json", HRNET % b'"center": [1, "b"], "scale": 1', r"center must be .*, got <U"),
        (
            "a.json",
            HRNET % b'"center": [1, 2], "scale": 1e99',
            r"scale must be below .* got 1e\+99",
        ),
        ("a.json", HRNET % b'"center": [1, 2]', "there is no 'scale'"),
        ("a.json", b'[{"joints": [[1], [1, 2]]}]', "got rows of several lengths"),
        ("a.json.gz", b"text", "Not a gzipped file"),
        ("a.json.gz", gzip.compress(b"[]" * 99, mtime=0)[:-12], "ended before"),
    ],
)
def test_a_file_that_is_no_mpii(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_poses(f"mpii:{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_mpii(tmp_path):
    with pytest.raises(DataError, match=r"expected one of mpii_16joints\.npz, .* found none"):
        open_poses(f"mpii:{tmp_path}")


# ---- FLIC ----------------------------------------------------------------------------------------


def write_flic(folder, part=None, **change):
    part = RNG.uniform(50, 400, (2, 11, 2)) if part is None else part
    visible = np.ones((2, 11))
    visible[1, 10] = 0  # the nose
    arrays = {
        "part": part,
        "visible": visible,
        "center": np.full((2, 2), 300.0),
        "scale": np.array([2.0, 1.0]),
        "image": np.array(["a.jpg", "b.jpg"]),
    } | change
    path = folder / "flic_11joints.npz"
    np.savez(path, **{f"valid_{k}": v for k, v in arrays.items() if v is not None})
    return path


def test_flic_leaves_out_the_eyes(tmp_path):
    part = RNG.uniform(50, 400, (2, 11, 2))
    path = write_flic(tmp_path, part)
    for place in (path, tmp_path):
        data = open_poses(f"flic:{place}")
        assert (data.name, data.skeleton, data.split) == ("flic", FLIC9, "val")
        first, second = data.samples
        np.testing.assert_allclose(first.joints[:8], part[0, :8] - 1, atol=1e-4)
        np.testing.assert_allclose(first.joints[8], part[0, 10] - 1, atol=1e-4)
        assert np.flatnonzero(~second.labelled).tolist() == [8]
        np.testing.assert_array_equal(first.box, [99, 99, 499, 499])
        assert first.image == tmp_path / "images" / "a.jpg"
    given = open_data(f"flic:{path}", images=tmp_path / "frames")
    assert given.samples[0].image == tmp_path / "frames" / "a.jpg"


def test_observer_centric_swaps_those_seen_from_behind(tmp_path):
    part = RNG.uniform(50, 400, (2, 11, 2))
    part[0, 0, 0], part[0, 3, 0] = 300, 200  # faces the camera: the left shoulder is to the right
    part[1, 0, 0], part[1, 3, 0] = 200, 300
    visible = np.ones((2, 11))
    visible[1, 1] = 0  # left elbow
    data = open_poses(f"flic:{write_flic(tmp_path, part, visible=visible)}")
    front, back = observer_centric(data).samples
    np.testing.assert_array_equal(front.joints, data.samples[0].joints)
    np.testing.assert_array_equal(back.joints, data.samples[1].joints[[3, 4, 5, 0, 1, 2, 7, 6, 8]])
    assert np.flatnonzero(~back.labelled).tolist() == [4]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"part": np.zeros((2, 9, 2))}, r"got \[2, 9, 2\], \[2, 11\]"),
        ({"part": np.float64(1)}, r"got \[\], \[2, 11\]"),
        ({"scale": np.array(["a", "b"])}, "must be numbers"),
        ({"scale": np.array([1e300, 1])}, r"part, center and scale must be pixels, below 1e\+30"),
        ({"part": np.full((2, 11, 2), 1e300)}, r"must be pixels, below 1e\+30"),
        ({"center": np.full((2, 2), -np.inf)}, r"must be pixels, below 1e\+30"),
        ({"scale": None}, "there is no 'valid_scale'"),
    ],
)
def test_faulty_flic_is_told_in_one_line(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        open_poses(f"flic:{write_flic(tmp_path, **change)}")
    with pytest.raises(DataError, match="there is no 'train_part'"):
        open_poses(f"flic:{tmp_path}", "train")


# ---- predictions in .npz -------------------------------------------------------------------------


def test_predictions_may_be_one_array_of_several(tmp_path):
    data = open_poses(f"flic:{write_flic(tmp_path)}")
    one, other = np.zeros((2, 9, 2)), np.full((2, 9, 2), 7.0)
    path = tmp_path / "p.npz"
    np.savez(path, one=one, other=other)
    np.testing.assert_array_equal(read_predictions(f"{path}:other", data), other - 1)
    with pytest.raises(DataError, match=r"no array 'third'; there are: one, other"):
        read_predictions(f"{path}:third", data)
    with pytest.raises(DataError, match=r"several arrays; name one as p\.npz:KEY; .* one, other"):
        read_predictions(path, data)
    np.savez(path, one=one)
    np.testing.assert_array_equal(read_predictions(path, data), one - 1)


# ---- the shared sets -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "split", "people"),
    [
        ("mpii:{}/mpii_annotations", "train", 22_246),
        ("mpii:{}/mpii_annotations", "val", 2957),
        ("mpii:{}/mpii_annotations/mpii_annotations.json.gz", "val", 2957),
        ("mpii:{}/mpii_small", "val", 4),
        ("flic:{}/flic_annotations", "train", 3987),
        ("flic:{}/flic_annotations", "test", 1016),
        ("coco:{}/coco_small/person_keypoints_train_tiny.json", "train", 57),
        ("coco:{}/coco_small/person_keypoints_val_tiny.json", "val", 26),
        ("coco:{}/coco_small/person_keypoints_val_mmpose4.json", "val", 12),
    ],
)
def test_the_shared_sets_are_complete(data_dir, text, split, people):
    data = open_poses(text.format(data_dir), split)
    assert len(data) == people
    if data.name == "coco" or "small" in text:
        assert all(s.image.is_file() for s in data.samples)
