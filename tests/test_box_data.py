"""Pictures with boxes in COCO's format."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_datasets import row, write

from fastpose.datasets import BoxData, open_boxes, open_data, open_poses, read_box_data
from fastpose.errors import DataError

CATEGORIES = ({"id": 7, "name": "dog"}, {"id": 3, "name": "person"})


def picture(number, name=None, size=(80, 100), **more):
    height, width = size
    name = name or f"{number}.jpg"
    return {"id": number, "file_name": name, "width": width, "height": height} | more


def annotation(image, bbox, category=3, **more):
    return {"image_id": image, "bbox": list(bbox), "category_id": category, "iscrowd": 0} | more


def write_boxes(folder, images, annotations, categories=CATEGORIES, split="val"):
    """A set whose pictures are there, but hold nothing: no reader opens them."""
    for image in images:
        path = folder / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def test_boxes_are_corners_of_their_picture_in_the_order_of_the_file(tmp_path):
    write_boxes(
        tmp_path,
        [picture(9, "a/b.jpg"), picture(4), picture(5)],
        [annotation(4, (1, 2, 3, 4.5)), annotation(9, (0, 0, 5, 5)), annotation(4, (6, 6, 1, 1))],
    )
    data = open_data(f"boxes:{tmp_path}", "val")
    assert isinstance(data, BoxData)
    assert (data.name, data.split, data.classes, data.left_out) == ("boxes", "val", ("person",), 0)
    assert [s.image for s in data.samples] == [
        tmp_path / "images" / name for name in ("a/b.jpg", "4.jpg", "5.jpg")
    ]
    first, second, empty = data.samples
    assert first.size == (80, 100)
    np.testing.assert_array_equal(first.boxes, [[0, 0, 5, 5]])
    np.testing.assert_array_equal(second.boxes, [[1, 2, 4, 6.5], [6, 6, 7, 7]])
    assert second.boxes.dtype == np.float32
    assert empty.boxes.shape == (0, 4)
    assert empty.classes.shape == empty.ignored.shape == (0,)
    assert [s.image.name for s in data.head(2).samples] == ["b.jpg", "4.jpg"]


def test_crowds_and_difficult_objects_are_ignored_not_lost(tmp_path):
    rows = [{"iscrowd": 1}, {"difficult": 1}, {"difficult": 0}, {}]
    write_boxes(tmp_path, [picture(1)], [annotation(1, (0, 0, 5, 5), **row) for row in rows])
    (sample,) = open_boxes(f"boxes:{tmp_path}").samples
    assert sample.ignored.tolist() == [True, True, False, False]


def test_only_people_are_read_unless_asked_for_more(tmp_path):
    found = [annotation(1, (0, 0, 5, 5), 7), annotation(1, (1, 0, 5, 5), 3)]
    write_boxes(tmp_path, [picture(1)], found)
    people = read_box_data(tmp_path, "val")
    assert (people.classes, people.left_out) == (("person",), 0)
    np.testing.assert_array_equal(people.samples[0].boxes, [[1, 0, 6, 5]])
    every = read_box_data(tmp_path, "val", names=None)
    assert every.classes == ("person", "dog")  # 3 and 7
    assert every.samples[0].classes.tolist() == [1, 0]
    dogs = read_box_data(tmp_path, "val", names=["dog", "person"])
    assert dogs.classes == ("dog", "person")
    assert dogs.samples[0].classes.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("bbox", "left"),
    [
        ((-5, -6, 20, 30), (0, 0, 15, 24)),
        ((90, 70, 20, 30), (90, 70, 100, 80)),
        ((0, 0, 100, 80), (0, 0, 100, 80)),
        ((100, 10, 5, 5), None),  # begins where the picture ends
        ((-5, 10, 5, 5), None),
        ((200, 200, 5, 5), None),
        ((10, 10, 0, 5), None),
        ((10, 10, 5, 0), None),
    ],
)
def test_boxes_are_cut_off_at_the_border_and_left_out_where_nothing_is_left(tmp_path, bbox, left):
    write_boxes(tmp_path, [picture(1)], [annotation(1, bbox), annotation(1, (1, 1, 2, 2))])
    data = open_boxes(f"boxes:{tmp_path}")
    expected = ([left] if left else []) + [(1, 1, 3, 3)]
    np.testing.assert_array_equal(data.samples[0].boxes, expected)
    assert data.left_out == (left is None)


def test_without_a_size_only_the_near_border_is_known(tmp_path):
    image = {"id": 1, "file_name": "a.jpg"}
    write_boxes(tmp_path, [image], [annotation(1, (-5, 2, 500, 4))])
    (sample,) = open_boxes(f"boxes:{tmp_path}").samples
    assert sample.size is None
    np.testing.assert_array_equal(sample.boxes, [[0, 2, 495, 6]])


def test_splits(tmp_path):
    for split, number in (("train", 1), ("val", 2)):
        write_boxes(tmp_path, [picture(number)], [], split=split)
    names = {s: open_boxes(f"boxes:{tmp_path}", s).samples[0].image.name for s in ("train", "val")}
    assert names == {"train": "1.jpg", "val": "2.jpg"}
    assert open_boxes(f"boxes:{tmp_path}", "test").split == "val"
    write_boxes(tmp_path, [picture(3)], [], split="test")
    assert open_boxes(f"boxes:{tmp_path}", "test").samples[0].image.name == "3.jpg"
    with pytest.raises(DataError, match="split must be train, val or test, got 'dev'"):
        open_boxes(f"boxes:{tmp_path}", "dev")


def test_the_original_layout_of_coco(tmp_path):
    write_boxes(tmp_path, [picture(1)], [annotation(1, (0, 0, 5, 5))])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val.json").rename(tmp_path / "annotations" / "instances_val2017.json")
    (tmp_path / "images").rename(tmp_path / "val2017")
    (sample,) = open_boxes(f"boxes:{tmp_path}").samples
    assert sample.image == tmp_path / "val2017" / "1.jpg"


def test_a_single_file_has_one_split(tmp_path):
    write_boxes(tmp_path, [picture(1)], [annotation(1, (0, 0, 5, 5))], split="clip")
    for split in ("train", "val"):
        data = open_boxes(f"boxes:{tmp_path / 'clip.json'}", split)
        assert data.split == "clip"
        assert data.samples[0].image == tmp_path / "images" / "1.jpg"


def test_a_picture_that_is_listed_but_not_there_is_named(tmp_path):
    write_boxes(tmp_path, [picture(1), picture(2)], [])
    (tmp_path / "images" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"2\.jpg: no such picture, which .*val\.json lists"):
        open_boxes(f"boxes:{tmp_path}")


def test_two_categories_named_person_are_refused_with_both_numbers(tmp_path):
    write_boxes(tmp_path, [picture(1)], [], (*CATEGORIES, {"id": 12, "name": "person"}))
    with pytest.raises(DataError, match=r"val\.json: 2 categories are named person: 3 and 12"):
        open_boxes(f"boxes:{tmp_path}")


def test_no_category_named_person_lists_those_there_are(tmp_path):
    write_boxes(tmp_path, [picture(1)], [], CATEGORIES[:1])
    with pytest.raises(DataError, match="no category is named person; there are: dog"):
        open_boxes(f"boxes:{tmp_path}")


GOOD = annotation(1, (0, 0, 5, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "expected a JSON object with lists 'images', 'annotations'"),
        ({"images": [{"id": 1}]}, r"images\[0\]: expected an object of the COCO format"),
        ({"images": ["a.jpg"]}, r"images\[0\]: expected an object of the COCO format"),
        ({"images": [picture(1, size=(0, 5))]}, r"images\[0\]: expected an object"),
        ({"images": [picture(1), picture(1)]}, r"images\[1\]: the id 1 is there twice"),
        ({"images": [picture([1])]}, r"images\[0\]: expected an object of the COCO format"),
        ({"categories": [{"id": 1}]}, r"categories\[0\]: expected an object of the COCO format"),
        ({"annotations": [5]}, r"annotations\[0\]: expected an object with image_id"),
        ({"annotations": [{"image_id": 1}]}, r"annotations\[0\]: expected an object with image_id"),
        ({"annotations": [GOOD | {"image_id": 8}]}, r"annotations\[0\]: no image has the id 8"),
        ({"annotations": [GOOD | {"image_id": [1]}]}, r"no image has the id \[1\]"),
        ({"annotations": [GOOD | {"category_id": 8}]}, r"no category has the id 8"),
        ({"annotations": [GOOD | {"bbox": [1, 2, 3]}]}, r"bbox must be .* got \[1, 2, 3\]"),
        ({"annotations": [GOOD | {"bbox": "a"}]}, r"bbox must be .* got 'a'"),
        ({"images": [picture(1, size=(float("inf"), 5))]}, r"images\[0\]: expected an object"),
        ({"annotations": [GOOD | {"bbox": [10**400] * 4}]}, "bbox must be"),
        ({"annotations": [GOOD | {"bbox": None}]}, r"bbox must be .* got None"),
        ({"annotations": [GOOD | {"bbox": [1, 2, -3, 4]}]}, r"bbox must be .*-3"),
        ({"annotations": [GOOD | {"bbox": [1, 2, float("inf"), 4]}]}, r"bbox must be .*inf"),
    ],
)
def test_a_faulty_file_is_told_in_one_line(tmp_path, change, message):
    write_boxes(tmp_path, [picture(1)], [GOOD])
    path = tmp_path / "val.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as caught:
        open_boxes(f"boxes:{tmp_path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: folder.mkdir()])
def test_a_folder_without_annotations(tmp_path, make):
    make(tmp_path / "set")
    with pytest.raises(DataError, match=r"set: (no such folder|expected val\.json or annotations)"):
        open_boxes(f"boxes:{tmp_path / 'set'}")


@pytest.mark.parametrize("kind", ["boxes", "lsp", "coco", "mpii", "flic"])
def test_a_name_that_no_file_can_have_is_told(kind):
    with pytest.raises(DataError, match="File name too long") as caught:
        open_data(f"{kind}:{'a' * 5000}")
    assert len(str(caught.value)) < 6000


def test_boxes_are_not_poses_and_poses_not_boxes(tmp_path):
    write_boxes(tmp_path, [picture(1)], [])
    with pytest.raises(DataError, match="has boxes alone; expected people with joints"):
        open_poses(f"boxes:{tmp_path}")
    with pytest.raises(DataError, match="expected boxes:DIR"):
        open_boxes(f"lsp:{write(tmp_path, row())}")


@pytest.mark.parametrize(
    ("name", "split", "pictures", "boxes", "ignored"),
    [
        ("person_boxes", "train", 347, 977, 15),
        ("person_boxes", "val", 162, 531, 9),
        ("voc_person", "train", 830, 557, 106),
        ("voc_person", "val", 496, 540, 107),
    ],
)
def test_the_shared_sets_are_complete(data_dir, name, split, pictures, boxes, ignored):
    data = open_boxes(f"boxes:{data_dir / name}", split)
    assert len(data) == pictures
    crowds = sum(int(s.ignored.sum()) for s in data.samples)
    assert (sum(len(s.boxes) for s in data.samples), data.left_out) == (
        boxes + (ignored if name == "person_boxes" else 0),  # its table counts crowds apart
        0,
    )
    assert crowds == ignored
