"""The result type: checked when made, indexed like a sequence, plain when written."""

import json

import numpy as np
import pytest

from fastpose.errors import ModelError
from fastpose.skeleton import CPM14, LSP14, MPII16, SKELETONS, joint_places, skeleton
from fastpose.types import Frame, People


def people(n=2, ids=None):
    rng = np.random.default_rng(0)
    return People(
        rng.random((n, 4), np.float32),
        rng.random(n, np.float32),
        rng.random((n, 14, 2), np.float32),
        rng.random((n, 14), np.float32),
        LSP14,
        ids,
    )


def test_nobody_is_an_ordinary_value():
    nobody = People.empty(LSP14)
    assert len(nobody) == 0
    assert nobody.keypoints.shape == (0, 14, 2)
    assert nobody.to_dict()["people"] == []


def test_indexing_gives_people():
    both = people(2, np.array([7, 9]))
    assert both[1].ids.tolist() == [9]
    assert both[-1].ids.tolist() == [9]
    assert len(both[[True, False]]) == 1
    assert len(both[:1]) == 1
    with pytest.raises(IndexError, match="person 2 of 2"):
        both[2]
    assert [p.ids[0] for p in both] == [7, 9]


@pytest.mark.parametrize("name", ["boxes", "box_scores", "keypoints", "scores", "ids"])
def test_a_wrong_shape_is_named(name):
    good = vars(people(2, np.array([1, 2])))
    with pytest.raises(ValueError, match=f"{name} must be"):
        People(**{**good, name: np.zeros((3, 5))})


def test_to_dict_is_json_with_null_for_missing_joints():
    one = people(1)
    one.keypoints[0, 3] = np.nan
    written = json.loads(json.dumps(one.to_dict(), allow_nan=False))["people"][0]
    assert written["keypoints"][3] == [None, None]
    assert written["id"] is None
    np.testing.assert_allclose(written["box"], one.boxes[0])


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))]
)
def test_a_frame_is_bgr_bytes(image):
    with pytest.raises(ValueError, match=r"image must be \[H, W, 3\] uint8, got"):
        Frame(image)


def test_joints_are_found_in_another_set_by_name():
    """The orders that the CPM release writes out by hand."""
    from_mpii = [9, 8, 12, 11, 10, 13, 14, 15, 2, 1, 0, 3, 4, 5]
    from_lsp = [13, 12, 8, 7, 6, 9, 10, 11, 2, 1, 0, 3, 4, 5]
    to_mpii = [0, 1, 2, 3, 4, 5, -1, -1, 12, 13, 6, 7, 8, 9, 10, 11]
    assert joint_places(MPII16, CPM14).tolist() == from_mpii
    assert joint_places(LSP14, CPM14).tolist() == from_lsp
    assert joint_places(LSP14, MPII16).tolist() == to_mpii


@pytest.mark.parametrize("joints", SKELETONS.values(), ids=SKELETONS)
def test_skeletons_are_consistent(joints):
    k = len(joints)
    assert len(set(joints.joints)) == k == len(joints.sigmas)
    assert all(0 <= a < k and 0 <= b < k and a != b for a, b in joints.limbs)
    order = joints.flip_order()
    np.testing.assert_array_equal(order[order], np.arange(k))
    for i, name in enumerate(joints.joints):  # a joint's twin bears the name of the other side
        other = name.replace("left", "@").replace("right", "left").replace("@", "right")
        assert joints.joints[order[i]] == other


def test_unknown_skeleton_lists_the_known():
    with pytest.raises(ModelError, match="unknown skeleton 'coco'; known: flic9, flic10, lsp14"):
        skeleton("coco")
