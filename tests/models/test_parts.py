"""Trees of parts: their shape, joints <-> parts, types, and how types are found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastpose.datasets import PoseData, Sample, open_poses
from fastpose.errors import ModelError
from fastpose.geometry import apply, boxes_to_affines, cells_to_frame, frame_box, invert
from fastpose.models import model_spec
from fastpose.models.joints import locate_joints
from fastpose.models.parts import PART_TREES, PartTree, part_tree
from fastpose.skeleton import FLIC9, FLIC10, LSP14, skeleton

LSP26, FLIC18 = PART_TREES["lsp26"], PART_TREES["flic18"]

on_both = pytest.mark.parametrize("tree", PART_TREES.values(), ids=PART_TREES)


def poses(tree, count=5, seed=0):
    joints = len(skeleton(tree.skeleton))
    return np.random.default_rng(seed).uniform(0, 40, (count, joints, 2)).astype(np.float32)


def chain(*parents, centres=None):
    """A tree over FLIC-10's joints, of which part i is joint i."""
    parts = FLIC10.joints[: len(parents)]
    centres = np.zeros((len(parts), 1, 2)) if centres is None else centres
    return PartTree("chain", "flic10", parts, parents, np.eye(len(parents), 10), centres)


# ---- the published trees -------------------------------------------------------------------------


def test_parents_are_the_published_ones():
    counted_from_1 = [0, 1, 2, 3, 4, 5, 6, 3, 8, 9, 10, 11, 12, 13]
    counted_from_1 += [2, 15, 16, 17, 18, 15, 20, 21, 22, 23, 24, 25]
    assert [parent + 1 for parent in LSP26.parents] == counted_from_1
    counted_from_1 = [0, 1, 2, 3, 4, 5, 6, 3, 8, 9, 2, 11, 12, 13, 14, 11, 16, 17]
    assert [parent + 1 for parent in FLIC18.parents] == counted_from_1


def test_joints_are_the_published_parts():
    order = [f"{side}_{joint}" for side in ("left", "right") for joint in
             ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")]  # fmt: skip
    places = [LSP26.joints[LSP14.joints.index(name)] + 1 for name in ("head_top", "neck", *order)]
    assert places == [1, 2, 3, 5, 7, 10, 12, 14, 15, 17, 19, 22, 24, 26]
    assert [part + 1 for part in FLIC18.joints] == [1, 2, 3, 5, 7, 10, 11, 13, 15, 18]


def test_sizes():
    assert (len(LSP26.parts), LSP26.types) == (26, 13)
    assert (len(FLIC18.parts), FLIC18.types) == (18, 1)
    assert (LSP26.root, FLIC18.root) == (0, 0)


def test_an_unknown_tree_is_named():
    with pytest.raises(ModelError, match="unknown part tree 'lsp14'; known: lsp26, flic18"):
        part_tree("lsp14")


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ((1, 0), "chain: one part must be the root, with parent -1; there are: none"),
        ((-1, 0, -1), "there are: head, left_shoulder"),
        ((-1, 0, 3), "the parent of part left_shoulder must be -1 to 2, got 3"),
        ((-1, -2), "the parent of part neck must be -1 to 1, got -2"),
        ((-1, 0, 3, 2), "part left_shoulder has no way to the root: its parents form a ring"),
        ((-1, 1), "part neck has no way to the root"),
    ],
)
def test_what_is_no_tree_is_refused(parents, message):
    with pytest.raises(ModelError, match=message):
        chain(*parents)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="lsp26: 26 parts have 25 parents"):
        replace(LSP26, parents=LSP26.parents[:-1])
    with pytest.raises(ModelError, match=r"weights must be \[26, 14\], got \[14, 26\]"):
        replace(LSP26, weights=LSP26.weights.T)
    with pytest.raises(ModelError, match=r"centres must be \[26, types, 2\], got \[26, 2\]"):
        replace(LSP26, centres=LSP26.centres[:, 0])
    with pytest.raises(ModelError, match="joint left_elbow of flic10 is no part"):
        chain(-1, 0, 1)


# ---- joints <-> parts ----------------------------------------------------------------------------


@on_both
def test_parts_to_joints_inverts_joints_to_parts(tree):
    joints = poses(tree)
    names = skeleton(tree.skeleton).joints
    if tree is FLIC18:  # whose neck is no joint of its own
        shoulders = [names.index(f"{side}_shoulder") for side in ("left", "right")]
        joints[:, names.index("neck")] = joints[:, shoulders].mean(axis=1)
    parts, known = tree.joints_to_parts(joints)
    assert parts.shape == (5, len(tree.parts), 2)
    assert parts.dtype == np.float32
    assert known.all()
    np.testing.assert_array_equal(tree.parts_to_joints(parts), joints)


@on_both
def test_points_between_joints(tree):
    joints = poses(tree)
    at = dict(zip(skeleton(tree.skeleton).joints, joints.transpose(1, 0, 2), strict=True))
    parts, _ = tree.joints_to_parts(joints)
    found = dict(zip(tree.parts, parts.transpose(1, 0, 2), strict=True))
    for side in ("left", "right"):
        shoulder, elbow, wrist, hip = (
            at[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist", "hip")
        )
        between = {
            "upper_arm": (shoulder + elbow) / 2,
            "forearm": (elbow + wrist) / 2,
            "chest": (2 * shoulder + hip) / 3,
            "waist": (shoulder + 2 * hip) / 3,
        }
        for name, expected in between.items():
            np.testing.assert_allclose(found[f"{side}_{name}"], expected, rtol=1e-6)
    if tree is LSP26:
        middle = (at["right_knee"] + at["right_ankle"]) / 2
        np.testing.assert_allclose(found["right_shin"], middle, rtol=1e-6)


def test_a_part_of_an_unlabelled_joint_is_not_known():
    joints, labelled = poses(LSP26, 2), np.ones((2, 14), bool)
    labelled[1, LSP14.joints.index("left_hip")] = False
    joints[~labelled] = np.nan
    parts, known = LSP26.joints_to_parts(joints, labelled)
    assert known[0].all()
    lost = [LSP26.parts[i] for i in np.flatnonzero(~known[1])]
    assert lost == ["left_chest", "left_waist", "left_hip", "left_thigh"]
    np.testing.assert_array_equal(np.isnan(parts).any(axis=2), ~known)


@on_both
def test_nobody(tree):
    parts, known = tree.joints_to_parts(poses(tree, 0))
    assert parts.shape == (0, len(tree.parts), 2)
    assert known.shape == parts.shape[:2]
    assert tree.parts_to_joints(parts).shape == (0, len(tree.joints), 2)
    assert tree.nearest_types(parts).shape == known.shape


# ---- types ---------------------------------------------------------------------------------------


def test_types_are_told_by_the_offset_from_the_parent():
    centres = np.zeros((10, 2, 2))
    centres[0] = [(0, -5), (0, 5)]  # of the root: of its first child, the neck, from it
    centres[1] = [(4, 0), (0, 4)]
    tree = chain(-1, 0, 1, 2, 3, 1, 1, 6, 7, 1, centres=centres)
    parts = np.zeros((2, 10, 2))
    parts[0, 1] = (1, 3)
    parts[1, 1] = (3, -1)
    assert tree.nearest_types(parts)[:, :2].tolist() == [[1, 1], [0, 0]]


def test_a_part_that_is_not_known_has_the_first_type():
    centres = np.zeros((10, 2, 2))
    centres[:, 0] = 99
    tree = chain(-1, 0, 1, 2, 3, 1, 1, 6, 7, 1, centres=centres)
    parts = np.zeros((1, 10, 2))
    parts[0, 2] = np.nan
    types = tree.nearest_types(parts)[0].tolist()
    assert types == [1, 1, 0, 0, 1, 1, 1, 1, 1, 1]  # part 3 is a child of part 2


def test_anchors_are_the_nearest_whole_cells():
    centres = np.zeros((10, 2, 2))
    centres[:, 0] = (1.4, -2.6)
    centres[:, 1] = (-0.4, 0.6)
    anchors = chain(-1, 0, 1, 2, 3, 1, 1, 6, 7, 1, centres=centres).anchors
    assert anchors.dtype == np.int64
    assert anchors[3].tolist() == [[1, -3], [0, 1]]
    assert not anchors[0].any()  # nothing is measured from the root's parent


def test_the_trees_types_are_those_of_people():
    """Heads lie above necks in film frames; types of a turned body point everywhere."""
    offset = dict(zip(FLIC18.parts, FLIC18.centres[:, 0], strict=True))
    assert offset["neck"][1] > 3
    assert offset["left_shoulder"][0] == -offset["right_shoulder"][0] > 3
    sides = np.sign(LSP26.centres).astype(int)
    for part in range(26):
        assert len({tuple(side) for side in sides[part] if all(side)}) == 4
        assert len({tuple(c) for c in LSP26.centres[part]}) == 13


# ---- from probabilities to joints ----------------------------------------------------------------


def spec_of(name, *views, **options):
    return replace(model_spec(name), views=views or (1.0,), **options)


@pytest.mark.parametrize("name", ["structured-lsp", "structured-flic"])
def test_twins_of_parts(name):
    tree = part_tree(model_spec(name).tree)
    order = tree.flip_order()
    assert tree.parts[order[tree.parts.index("left_forearm")]] == "right_forearm"
    assert order[0] == 0
    np.testing.assert_array_equal(order[order], np.arange(len(tree.parts)))
    joints = list(tree.joints)  # twins of joints are twins of their parts
    twins = skeleton(tree.skeleton).flip_order()
    np.testing.assert_array_equal(order[joints], np.array(joints)[twins])


class Scene:
    """One person in a frame, and what a network that knows it would give."""

    def __init__(self, spec, seed=0):
        self.spec, self.tree = spec, part_tree(spec.tree)
        box = np.array([[100, 50, 500, 400]], np.float32)
        views = [boxes_to_affines(box, spec.size, padding=f) for f in spec.views]
        self.affines = np.concatenate(views)
        to_frame = cells_to_frame(self.affines, spec.convention, spec.size, spec.cells)
        random = np.random.default_rng(seed)
        parts = np.zeros((1, len(self.tree.parts), 2))
        for part in range(1, len(self.tree.parts)):
            kind = random.integers(self.tree.types)
            parts[0, part] = parts[0, self.tree.parents[part]] + self.tree.anchors[part, kind]
        low, high = parts.min(axis=1), parts.max(axis=1)
        parts += 21 - np.rint((low + high) / 2)[:, None]  # cells of the first view
        assert parts.min() > 2
        assert parts.max() < 40
        points = apply(to_frame[:1], parts)
        self.joints = self.tree.parts_to_joints(points)
        self.cells = np.rint(apply(invert(to_frame), np.repeat(points, len(views), 0))).astype(int)
        self.cell = to_frame[:, 0, 0]  # frame pixels
        self.types = self.tree.nearest_types(self.cells.astype(np.float64))
        self.results = np.zeros((len(views), *spec.results[0]), np.float32)

    def maps(self, view, part):
        """[T, h, w] of one part in one view."""
        first = part * self.tree.types
        return self.results[view, first : first + self.tree.types]

    def put(self, view, height):
        """Let all parts be seen where they are, with this probability."""
        for part, (x, y) in enumerate(self.cells[view]):
            self.maps(view, part)[self.types[view, part], y, x] = height

    def find(self, **options):
        return locate_joints(self.results, self.affines, self.spec, **options)


@pytest.mark.parametrize("method", ["tree", "argmax"])
@pytest.mark.parametrize("name", ["structured-lsp", "structured-flic"])
@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_view_of_the_best_pose_is_kept(name, method, best):
    scene = Scene(spec_of(name, 1.0, 1.2, 1.5, method=method))
    for view in range(3):
        scene.put(view, 0.9 if view == best else 0.3)
    points, scores = scene.find()
    assert points.shape == (1, len(scene.spec.joints), 2)
    assert (points.dtype, scores.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(points, scene.joints, atol=0.51 * scene.cell[best])
    np.testing.assert_allclose(scores, 0.9)


def test_people_of_leeds_are_found_where_their_parts_are_seen(data_dir):
    """The springs are weak enough for every pose of the set that the types were not found of."""
    data = open_poses(f"lsp:{data_dir / 'lsp'}", "test").head(20)
    spec = spec_of("structured-lsp")
    boxes = np.concatenate([frame_box(*sample.size) for sample in data.samples])
    affines = boxes_to_affines(boxes, spec.size, convention=spec.convention)
    to_frame = cells_to_frame(affines, spec.convention, spec.size, spec.cells)
    joints = np.stack([sample.joints for sample in data.samples])
    cells = apply(invert(to_frame), LSP26.joints_to_parts(joints)[0])
    types = LSP26.nearest_types(cells)
    x, y = np.rint(cells).astype(int).clip(0, 41).transpose(2, 0, 1)
    results = np.zeros((len(data), *spec.results[0]), np.float32)
    people, parts = np.ogrid[: len(data), :26]
    results[people, parts * 13 + types, y, x] = 1
    points, _ = locate_joints(results, affines, spec)
    assert (np.abs(points - joints) <= 0.51 * to_frame[:, :1, :1]).all()


def test_people_are_read_each_in_their_own_views():
    spec = spec_of("structured-flic", 1.0, 1.25)
    scenes = [Scene(spec), Scene(spec)]
    scenes[1].affines[:, :, 2] += 1000
    for scene, heights in zip(scenes, [(0.2, 0.8), (0.7, 0.1)], strict=True):
        for view, height in enumerate(heights):
            scene.put(view, height)
    results = np.concatenate([scene.results for scene in scenes])
    affines = np.concatenate([scene.affines for scene in scenes])
    points, scores = locate_joints(results, affines, spec)
    for row, scene in enumerate(scenes):
        expected = scene.find()
        np.testing.assert_array_equal(points[row], expected[0][0])
        np.testing.assert_array_equal(scores[row], expected[1][0])


def test_the_tree_passes_over_a_likelier_cell_that_no_body_reaches():
    scene = Scene(spec_of("structured-lsp"))
    scene.put(0, 0.6)
    wrist = scene.tree.parts.index("left_wrist")
    x, y = scene.cells[0, wrist]
    far = 2 if x > 20 else 39
    scene.maps(0, wrist)[0, y, far] = 0.9
    joint = LSP14.joints.index("left_wrist")
    points, scores = scene.find()
    np.testing.assert_allclose(points[0, joint], scene.joints[0, joint], atol=0.51 * scene.cell[0])
    assert scores[0, joint] == np.float32(0.6)
    scene.spec = replace(scene.spec, method="argmax")
    points, scores = scene.find()
    assert abs(points[0, joint, 0] - scene.joints[0, joint, 0]) > 10 * scene.cell[0]
    assert scores[0, joint] == np.float32(0.9)


def test_a_score_is_the_probability_of_the_part_of_whatever_type():
    scene = Scene(spec_of("structured-lsp"))
    scene.put(0, 0.5)
    elbow = scene.tree.parts.index("right_elbow")
    x, y = scene.cells[0, elbow]
    scene.maps(0, elbow)[:, y, x] = 0.02
    scene.maps(0, elbow)[scene.types[0, elbow], y, x] = 0.5
    _, scores = scene.find()
    assert scores[0, LSP14.joints.index("right_elbow")] == pytest.approx(0.5 + 12 * 0.02)


@pytest.mark.parametrize("method", ["tree", "argmax"])
def test_a_view_without_a_finite_result_is_passed_over(method):
    scene = Scene(spec_of("structured-lsp", 1.0, 1.2, method=method))
    scene.results[0] = np.nan
    scene.put(1, 0.4)
    points, scores = scene.find()
    np.testing.assert_allclose(points, scene.joints, atol=0.51 * scene.cell[1])
    scene.results[1] = np.nan
    points, scores = scene.find()
    assert np.isnan(points).all()
    assert not scores.any()


@pytest.mark.parametrize("method", ["tree", "argmax"])
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_joint_whose_part_is_nowhere_is_missing(method, value):
    scene = Scene(spec_of("structured-lsp", method=method))
    scene.put(0, 0.7)
    scene.maps(0, scene.tree.parts.index("left_wrist"))[:] = value
    points, scores = scene.find()
    wrist = LSP14.joints.index("left_wrist")
    assert np.isnan(points[0, wrist]).all()
    assert scores[0, wrist] == 0
    others = np.arange(14) != wrist
    np.testing.assert_allclose(scores[0, others], 0.7)
    np.testing.assert_allclose(
        points[0, others], scene.joints[0, others], atol=0.51 * scene.cell[0]
    )


@pytest.mark.parametrize("name", ["structured-lsp", "structured-flic"])
def test_nobody_has_no_joints(name):
    spec = spec_of(name, 1.0, 1.2)
    results = np.zeros((0, *spec.results[0]), np.float32)
    points, scores = locate_joints(results, np.zeros((0, 2, 3)), spec)
    assert points.shape == (0, len(spec.joints), 2)
    assert scores.shape == (0, len(spec.joints))


def mirrored(scene):
    """What a network gives for the mirrored window: parts of the other side, the same types."""
    n, _, h, w = scene.results.shape
    parts = scene.results[:, :-1].reshape(n, len(scene.tree.parts), -1, h, w)
    parts = parts[:, scene.tree.flip_order(), :, :, ::-1]
    return np.concatenate((parts.reshape(n, -1, h, w), scene.results[:, -1:, :, ::-1]), axis=1)


@pytest.mark.parametrize(
    ("name", "method"), [("structured-flic", "tree"), ("structured-lsp", "argmax")]
)
def test_flip_of_a_true_network_changes_nothing(name, method):
    scene = Scene(spec_of(name, method=method))
    scene.put(0, 0.5)
    points, scores = scene.find()
    again = scene.find(flipped=mirrored(scene))
    np.testing.assert_array_equal(again[0], points)
    np.testing.assert_array_equal(again[1], scores)
    half = scene.find(flipped=np.zeros_like(scene.results))
    np.testing.assert_array_equal(half[0], points)
    np.testing.assert_array_equal(half[1], scores / 2)


def test_types_of_turned_parts_have_no_flip_test():
    scene = Scene(spec_of("structured-lsp"))
    with pytest.raises(ModelError, match="structured-lsp has no flip test: its types of parts"):
        scene.find(flipped=scene.results)


def test_methods_of_parts_and_of_maps_are_not_mixed_up():
    with pytest.raises(ModelError, match="method must be one of tree, argmax, got 'dark'"):
        spec_of("structured-lsp", method="dark")
    with pytest.raises(ModelError, match=r"method must be one of argmax, .*, got 'tree'"):
        replace(model_spec("cpn50"), method="tree")


# ---- finding the types ---------------------------------------------------------------------------


def film_frames(joints, labelled=None):
    """FLIC-9 people whose boxes are 224 px, twice as small as the window."""
    box = np.array([0, 0, 224, 200], np.float32)
    labelled = np.ones(joints.shape[:2], bool) if labelled is None else labelled
    return PoseData(
        "flic",
        FLIC9,
        tuple(
            Sample(Path("a.jpg"), (480, 720), j.astype(np.float32), known, known, box)
            for j, known in zip(joints, labelled, strict=True)
        ),
    )


def arms(offsets):
    """People without extent but for the left elbow, and what hangs on it."""
    joints = np.zeros((len(offsets), 9, 2))
    joints[:, 1] = joints[:, 2] = offsets
    return joints


def test_one_type_is_the_mean_over_people_and_their_mirror_images():
    pytest.importorskip("sklearn")
    from fastpose.train.part_types import find_types

    data = film_frames(arms([(8, 40), (24, 80)]))
    centres = find_types(FLIC18, data, types=1, restarts=1, size=448)
    at = dict(zip(FLIC18.parts, centres[:, 0], strict=True))
    # 8 px of the window are 4 px here, the upper arm is half of it, and the right arm has the
    # mirror images of the left arm: half of all
    assert at["left_upper_arm"] == pytest.approx([1, 3.75])
    assert at["right_upper_arm"] == pytest.approx([-1, 3.75])
    assert at["left_elbow"] == pytest.approx([1, 3.75])
    assert not at["neck"].any()


few = pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # nobody moves a leg


@few
def test_types_are_the_clusters():
    pytest.importorskip("sklearn")
    from fastpose.train.part_types import find_types

    random = np.random.default_rng(0)
    spread = random.normal(0, 0.4, (30, 2))
    offsets = np.repeat([(80, 0), (0, 80), (-80, 0)], 10, axis=0) + spread
    data = film_frames(arms(offsets))
    found = find_types(FLIC18, data, types=4, restarts=10, size=448)
    elbow = found[FLIC18.parts.index("left_elbow")]
    # people whose arm does not move, the mirror images, are the fourth cluster
    assert {tuple(centre) for centre in elbow.round()} == {(-10, 0), (0, 0), (0, 10), (10, 0)}
    again = find_types(FLIC18, data, types=4, restarts=10, size=448)
    np.testing.assert_array_equal(again, found)


@few
def test_turned_people_have_turned_offsets():
    pytest.importorskip("sklearn")
    from fastpose.train.part_types import find_types

    data = film_frames(arms([(64, 48)]))
    found = find_types(FLIC18, data, types=5, restarts=5, turns=4, size=448)
    elbow = found[FLIC18.parts.index("left_elbow")]
    centres = {tuple(centre) for centre in elbow.round(6)}
    assert centres == {(8, 6), (-6, 8), (-8, -6), (6, -8), (0, 0)}  # turned, not mirrored


def test_what_types_cannot_be_found_of_is_named():
    pytest.importorskip("sklearn")
    from fastpose.train.part_types import find_types

    data = film_frames(arms([(80, 0)]))
    with pytest.raises(ModelError, match="lsp26: 0 people have head_top, too few for 13 types"):
        find_types(LSP26, data)
    with pytest.raises(ModelError, match="flic18: 2 people have head, too few for 3 types"):
        find_types(FLIC18, data, types=3)


def test_the_command_writes_what_the_trees_are_read_from(data_dir, tmp_path):
    pytest.importorskip("sklearn")
    from fastpose.train.part_types import main

    out = tmp_path / "flic18.json"
    flic = f"flic:{data_dir / 'flic_annotations'}"
    options = ["--observer-centric", "--types", "1", "--restarts", "1", "--size", "448"]
    main(["--tree", "flic18", "--data", flic, *options, "--out", str(out)])
    written = json.loads(out.read_text())
    assert written["people"] == 3987
    np.testing.assert_array_equal(written["centres"], FLIC18.centres)


def test_a_centre_of_lsp26_is_the_mean_of_the_people_nearest_to_it(data_dir):
    """What k-means ends with, on the people that the shipped types were found of."""
    data = open_poses(f"lsp:{data_dir / 'lsp'}", "train")
    from fastpose.train.part_types import _offsets

    offsets = np.concatenate([_offsets(LSP26, data, 336, mirrored) for mirrored in (False, True)])
    angles = 2 * np.pi * np.arange(40) / 40
    for name in ("head_top", "left_wrist", "right_knee"):
        part = LSP26.parts.index(name)
        turned = np.concatenate(
            [offsets[:, part] @ [[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]] for a in angles]
        )
        nearest = ((turned[:, None] - LSP26.centres[part]) ** 2).sum(axis=2).argmin(axis=1)
        means = [turned[nearest == k].mean(axis=0) for k in range(13)]
        np.testing.assert_allclose(means, LSP26.centres[part], atol=0.01)
