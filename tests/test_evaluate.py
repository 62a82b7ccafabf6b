from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from fastpose.datasets import PoseData, Sample, open_poses, read_predictions, with_joints
from fastpose.errors import DataError, ModelError
from fastpose.evaluate import evaluate_model, evaluate_predictions, pck, pcp, predict_joints
from fastpose.evaluate.joints import LEEDS_STICKS, UNSCORED
from fastpose.models.spec import ModelSpec
from fastpose.skeleton import COCO17, FLIC9, LSP14, MPII16, Skeleton

SIDES = [k for k, name in enumerate(LSP14.joints) if "_" in name and name != "head_top"]
RIGHT = [k for k in SIDES if LSP14.joints[k].startswith("right")]


# ---- the formulas, by hand -----------------------------------------------------------------------


def test_pck_by_hand():
    truth = np.zeros((2, 3, 2))
    # 3-4-5 triangles; person 0 may miss by 0.2 * 25 = 5, person 1 by 0.2 * 50 = 10
    predicted = np.array([[[3, 4], [3, 4.01], [0, 0]], [[-6, 8], [6, -8.01], [np.nan, 0]]], float)
    reference = np.array([25.0, 50.0])
    np.testing.assert_allclose(pck(predicted, truth, reference=reference), [1, 0, 0.5])
    fine = pck(predicted, truth, reference=reference, threshold=0.1)
    np.testing.assert_allclose(fine, [0, 0, 0.5])


def test_pck_counts_valid_joints_alone():
    truth, predicted = np.zeros((2, 3, 2)), np.zeros((2, 3, 2))
    predicted[0] = 9
    valid = np.array([[False, True, False], [True, True, False]])
    rates = pck(predicted, truth, reference=np.full(2, 10.0), valid=valid)
    np.testing.assert_array_equal(rates, [1, 0.5, np.nan])


@pytest.mark.parametrize(
    ("predicted", "truth", "reference", "message"),
    [
        ((2, 3, 2), (2, 3), 2, r"truth must be \[N, K, 2\], got \[2, 3\]"),
        ((2, 4, 2), (2, 3, 2), 2, r"predicted must be \[2, 3, 2\] like truth, got \[2, 4, 2\]"),
        ((2, 3, 2), (2, 3, 2), 1, r"reference must be \[2\], got \[1\]"),
    ],
)
def test_pck_names_the_argument_that_does_not_fit(predicted, truth, reference, message):
    with pytest.raises(ValueError, match=message):
        pck(np.zeros(predicted), np.zeros(truth), reference=np.ones(reference))


def test_pck_names_joints_that_do_not_fit():
    poses = np.zeros((2, 3, 2))
    with pytest.raises(ValueError, match=r"valid must be \[2, 3\], got \[2, 4\]"):
        pck(poses, poses, reference=np.ones(2), valid=np.ones((2, 4), bool))


def test_pcp_by_hand():
    truth = np.array([[[0, 0], [10, 0], [10, 20]]] * 4, float)
    predicted = truth.copy()
    predicted[0, 1] += (3, 4)  # 5 px off: half of the first stick, a quarter of the second
    predicted[1, 1] += (3, 4.1)  # wrong for the first alone
    predicted[2, 2] += (0, 10.1)  # wrong for the second
    predicted[3, 0] = np.nan  # wrong for the first
    sticks = [([0], [1]), ([1], [2])]
    np.testing.assert_allclose(pcp(predicted, truth, sticks), [0.5, 0.75])
    fine = pcp(predicted, truth, sticks, threshold=0.2)
    np.testing.assert_allclose(fine, [0.25, 0.25])


def test_pcp_is_strict():
    """Both ends must be right: errors that leave the middle where it was do not cancel out."""
    truth = np.array([[[0, 0], [10, 0]]], float)
    predicted = truth + np.array([(-6, 0), (6, 0)])
    assert pcp(predicted, truth, [([0], [1])]).tolist() == [0]


def test_an_end_may_be_the_mean_of_joints():
    truth = np.array([[[-4, 0], [4, 0], [0, 30]]], float)
    predicted = truth + np.array([(-50, 0), (50, 0), (0, 0)])
    assert pcp(predicted, truth, [([0, 1], [2])]).tolist() == [1]


def test_pcp_counts_sticks_whose_joints_are_all_valid():
    truth = np.array([[[0, 0], [10, 0], [20, 0]]] * 2, float)
    valid = np.array([[True, True, False], [False, True, False]])
    rates = pcp(truth, truth, [([0], [1]), ([1], [2])], valid=valid)
    np.testing.assert_array_equal(rates, [1, np.nan])


def lsp_sample(joints, labelled=None, visible=None, image=None, size=(80, 60)):
    every = np.ones(14, bool)
    return Sample(
        image,
        size,
        np.asarray(joints, np.float32),
        every if labelled is None else labelled,
        every if visible is None else visible,
    )


def person(torso=10.0):
    """A truth whose left shoulder (9) is `torso` px from its right hip (2)."""
    joints = np.tile(np.arange(14.0)[:, None], (1, 2))
    joints[9] = joints[2] + (0, torso)
    return joints


def test_the_reference_is_left_shoulder_to_right_hip():
    truth = person(torso=10)
    predicted = truth.copy()
    predicted[0] += (2.0, 0)  # right ankle, exactly 0.2 torsos off: right
    predicted[1] += (2.1, 0)  # right knee: wrong
    predicted[13] += (0, 9.0)  # head top: wrong, and no limb
    visible = np.ones(14, bool)
    visible[[0, 1, 13]] = False
    data = PoseData("lsp", LSP14, (lsp_sample(truth, visible=visible),))
    report = evaluate_predictions(data, predicted[None])
    assert report.images == 1
    assert report.per_joint["right_ankle"] == 100
    assert report.per_joint["right_knee"] == 0
    assert report.metrics["pck@0.2"] == pytest.approx(100 * 12 / 14)
    assert report.metrics["pck@0.2_limbs"] == pytest.approx(100 * 11 / 12)
    assert report.metrics["pck@0.2_occluded"] == pytest.approx(100 / 3)
    assert report.metrics["pck@0.1"] == pytest.approx(100 * 11 / 14)


def test_the_mean_is_that_of_the_joints_not_of_all_instances():
    labelled = np.ones(14, bool)
    labelled[0] = False
    data = PoseData("lspet", LSP14, (lsp_sample(person()), lsp_sample(person(), labelled)))
    predicted = np.stack([person(), person()])
    predicted[0, 0] += 99  # the only right ankle that counts
    report = evaluate_predictions(data, predicted)
    assert report.metrics["pck@0.2"] == pytest.approx(100 * 13 / 14)


def test_people_without_a_torso_do_not_count():
    labelled = np.ones(14, bool)
    labelled[9] = False
    data = PoseData("lspet", LSP14, (lsp_sample(person()), lsp_sample(person(), labelled)))
    predicted = np.stack([person(), person() + 99])
    assert evaluate_predictions(data, predicted).metrics["pck@0.2"] == 100


def test_a_set_without_hidden_joints_has_no_figure_for_them():
    data = PoseData("lsp", LSP14, (lsp_sample(person()),))
    report = evaluate_predictions(data, person()[None])
    assert np.isnan(report.metrics["pck@0.2_occluded"])
    assert report.to_dict()["pck@0.2_occluded"] is None


def standing():
    """An LSP truth in which every stick is 20 px long, the head 10 px, the torso 40 px."""
    places = {"neck": (0, 0), "head_top": (0, -10)}
    for side, sign in (("left", 1), ("right", -1)):
        arm = {"shoulder": (10, 0), "elbow": (10, 20), "wrist": (10, 40)}
        leg = {"hip": (8, 40), "knee": (8, 60), "ankle": (8, 80)}
        places |= {f"{side}_{joint}": (sign * x, y) for joint, (x, y) in (arm | leg).items()}
    return np.array([places[name] for name in LSP14.joints], float) + 100


def test_strict_pcp_of_the_truth_is_100_over_ten_sticks():
    data = PoseData("lsp", LSP14, (lsp_sample(standing()), lsp_sample(standing() * 2)))
    truth = np.stack([s.joints for s in data.samples])
    sticks = LEEDS_STICKS.values()
    places = [[[LSP14.joints.index(j) for j in end] for end in stick] for stick in sticks]
    assert pcp(truth, truth, places).tolist() == [1] * 10
    metrics = evaluate_predictions(data, truth).metrics
    kinds = ("torso", "head", "upper_arm", "lower_arm", "upper_leg", "lower_leg")
    assert {name for name in metrics if name.startswith("pcp")} == {
        "pcp@0.5",
        *(f"pcp@0.5_{kind}" for kind in kinds),
    }
    assert all(metrics[f"pcp@0.5_{kind}"] == 100 for kind in kinds)
    assert metrics["pcp@0.5"] == 100


def test_pcp_of_leeds_by_hand():
    data = PoseData("lsp", LSP14, (lsp_sample(standing()), lsp_sample(standing())))
    predicted = np.stack([standing(), standing()])
    moved = dict(zip(LSP14.joints, predicted[0], strict=True))  # views of the first person
    moved["left_elbow"] += (10.5, 0)  # both arm sticks of the left side
    moved["head_top"] += (5.5, 0)
    moved["right_ankle"] += (9.5, 0)  # right
    moved["left_hip"] += (0, 44)  # the mean of the hips is 22 off: the torso, and the upper leg
    metrics = evaluate_predictions(data, predicted).metrics
    rates = {"torso": 50, "head": 50, "upper_arm": 75, "lower_arm": 75}
    rates |= {"upper_leg": 75, "lower_leg": 100}
    for kind, rate in rates.items():
        assert metrics[f"pcp@0.5_{kind}"] == rate
    assert metrics["pcp@0.5"] == pytest.approx(100 * (20 - 5) / 20)


def test_a_stick_without_its_joints_is_left_out():
    data = PoseData("lsp", LSP14, (lsp_sample(standing()),))
    data = with_joints(data, MPII16)  # which has no "neck"
    metrics = evaluate_predictions(data, data.samples[0].joints[None]).metrics
    assert "pcp@0.5_head" not in metrics
    assert metrics["pcp@0.5_torso"] == metrics["pcp@0.5"] == 100


def test_pcp_of_flic_is_that_of_the_arms():
    joints = np.zeros((9, 2), np.float32)
    joints[[1, 4]] = (0, 20)  # elbows
    joints[[2, 5]] = (0, 40)  # wrists
    joints[7] = (0, 50)
    every = np.ones(9, bool)
    wristless = every.copy()
    wristless[2] = False
    samples = tuple(
        Sample("a.jpg", (480, 720), joints, labelled, labelled) for labelled in (every, wristless)
    )
    predicted = np.stack([joints, joints])
    predicted[1, 4] += (10.5, 0)  # right elbow
    predicted[1, 8] += 300  # the head is no end of an arm
    metrics = evaluate_predictions(PoseData("flic", FLIC9, samples), predicted).metrics
    assert metrics["pcp@0.5_upper_arm"] == 75
    assert metrics["pcp@0.5_lower_arm"] == 75  # of the left ones one counts
    assert metrics["pcp@0.5"] == 75


@pytest.mark.parametrize(
    ("file", "figure"),
    [("cpm_lsp_trained_on_lsp", 84.245), ("cpm_lsp_trained_on_mpii_lsp", 90.694)],
)
def test_published_predictions_give_the_published_figures(data_dir, file, figure):
    data = open_poses(f"lsp:{data_dir / 'lsp'}")
    predicted = read_predictions(data_dir / "reference_predictions" / f"{file}.npy", data)
    report = evaluate_predictions(data, predicted)
    assert report.to_dict()["pck@0.2"] == figure
    assert report.images == 700


def mpii_sample(head_size=20.0, **options):
    every = np.ones(16, bool)
    labelled = options.get("labelled", every)
    joints = np.tile(np.arange(16, dtype=np.float32)[:, None], (1, 2))
    return Sample(options.get("image", "a.jpg"), None, joints, labelled, labelled, None, head_size)


def mpii(*samples):
    return PoseData("mpii", MPII16, samples, "val")


def off(data, *faults):
    """The truth, but joints (person, name) moved by a distance."""
    predicted = np.stack([s.joints for s in data.samples]).astype(float)
    for person, name, distance in faults:
        predicted[person, data.skeleton.joints.index(name), 0] += distance
    return predicted


def test_pckh_takes_all_joints_together_and_half_of_the_head():
    labelled = np.ones(16, bool)
    labelled[MPII16.joints.index("right_wrist")] = False
    data = mpii(mpii_sample(20.0), mpii_sample(40.0, labelled=labelled))
    predicted = off(
        data,
        (0, "right_ankle", 10.0),  # half of the head: right
        (0, "left_ankle", 10.1),  # wrong
        (1, "left_ankle", 19.9),  # right
        (0, "right_wrist", 99.0),  # wrong, the only one that counts
        (1, "right_wrist", 99.0),  # not labelled
        (1, "head_top", 99.0),
        (0, "pelvis", 99.0),  # does not count
        (1, "thorax", 99.0),
    )
    report = evaluate_predictions(data, predicted)
    assert report.metrics["pckh@0.5"] == pytest.approx(100 * 24 / 27)
    assert report.metrics["pckh@0.5_mean"] == pytest.approx(100 * (11 + 0.5 + 0 + 0.5) / 14)
    assert report.metrics["pckh@0.1"] == pytest.approx(100 * 22 / 27)
    parts = {"head": 50, "shoulder": 100, "elbow": 100, "wrist": 50, "ankle": 75, "hip": 100}
    for part, rate in parts.items():
        assert report.metrics[f"pckh@0.5_{part}"] == rate
    assert report.per_joint["left_ankle"] == 50
    assert len(report.per_joint) == 14
    assert (report.images, report.people) == (1, 2)  # both in one picture
    assert next(iter(report.metrics)) == "pckh@0.5"


def test_a_model_does_not_run_where_no_head_has_a_size():
    data = PoseData("mpii", MPII16, (mpii_sample(np.nan),))
    with pytest.raises(DataError, match="no sizes of heads, which PCKh divides by"):
        evaluate_model(None, data)


def test_people_whose_head_has_no_size_do_not_count():
    data = mpii(mpii_sample(20.0), mpii_sample(np.nan))
    report = evaluate_predictions(data, off(data, (1, "left_hip", 999.0)))
    assert (report.metrics["pckh@0.5"], report.people) == (100, 1)
    with pytest.raises(DataError, match="no sizes of heads, which PCKh divides by"):
        evaluate_predictions(mpii(mpii_sample(np.nan)), np.zeros((1, 16, 2)))


@pytest.mark.parametrize(
    ("file", "pooled", "mean", "fine", "parts"),
    [
        # spec: the figures of all 2,958 rows are 82.34 / 81.46 / 28.97, 88.43 / 87.98 / 21.59 and
        # 89.09 / 88.64 / 24.49
        ("mpii_annotations/mpii_val_reference.npz:pred", 82.33, 81.45, 28.97, (95.60, 65.43)),
        (
            "reference_predictions/mpii_val_predictions.npz:newell_8hg",
            *(88.42, 87.98, 21.59, (95.94, 80.36)),
        ),
        (
            "reference_predictions/mpii_val_predictions.npz:bearpaw_hg8",
            *(89.09, 88.64, 24.50, (96.79, 80.72)),
        ),
    ],
)
def test_published_predictions_give_the_published_pckh(data_dir, file, pooled, mean, fine, parts):
    data = open_poses(f"mpii:{data_dir / 'mpii_annotations'}")
    report = evaluate_predictions(data, read_predictions(data_dir / file, data))
    assert report.people == 2957
    names = ("pckh@0.5", "pckh@0.5_mean", "pckh@0.1", "pckh@0.5_head", "pckh@0.5_ankle")
    figures = [round(report.metrics[name], 2) for name in names]
    assert figures == [pooled, mean, fine, *parts]


def flic(*torsos):
    """People whose left shoulder is so far from the right hip."""
    every = np.ones(9, bool)
    samples = []
    for torso in torsos:
        joints = np.zeros((9, 2), np.float32)
        joints[FLIC9.joints.index("left_shoulder")] = (torso, 0)
        samples.append(Sample("a.jpg", None, joints, every, every))
    return PoseData("flic", FLIC9, tuple(samples), "val")


def test_flic_is_scored_by_the_torso_of_the_truth():
    data = flic(100.0, 200.0)
    predicted = off(
        data,
        (0, "left_elbow", 20.0),  # 0.2 of the torso: right
        (1, "left_elbow", 41.0),  # wrong
        (0, "right_elbow", 6.0),
        (1, "right_wrist", 21.0),
        (0, "left_shoulder", 900.0),  # the predicted torso does not matter
    )
    metrics = evaluate_predictions(data, predicted).metrics
    assert metrics["pck@0.2"] == pytest.approx(100 * (7 + 0.5 + 0.5) / 9)
    assert (metrics["pck@0.2_elbow"], metrics["pck@0.2_wrist"]) == (75, 100)
    assert (metrics["pck@0.1_elbow"], metrics["pck@0.1_wrist"]) == (50, 75)
    assert (metrics["pck@0.05_elbow"], metrics["pck@0.05_wrist"]) == (25, 75)


# ---- a model over pictures -----------------------------------------------------------------------

SPEC = ModelSpec(
    name="dots",
    network="none:none",
    size=(96, 64),
    stride=4,
    skeleton="lsp14",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    rgb=True,
    convention="symmetric",
    padding=1.5,  # the protocol replaces it by 1
    method="parabola",
    sigma=2.0,
    peak_value=255.0,
    paper="",
)


@dataclass
class DotEngine:
    """Stands in for a network: right joints are the bright dot of a window's left half.

    A person who faces the camera has the right side on the left. `shift` moves all answers that
    many cells to the right: a fault that averaging with the mirrored window takes away.
    """

    shift: int = 0
    bucket: int = 4

    def __post_init__(self):
        self.manifest = SimpleNamespace(
            spec=SPEC, name=SPEC.name, kind="torch", precision="f32", buckets=(1, self.bucket)
        )
        self.window = np.full((self.bucket, 3, *SPEC.size), np.nan, np.float32)
        self.maps = np.empty((self.bucket, 14, *SPEC.cells), np.float32)
        self.batches = []
        self.closed = False

    def buffer(self, n):
        assert n <= self.bucket
        return self.window[:n]

    def close(self):
        self.closed = True

    def __call__(self, batch):
        self.buffer(len(batch))[...] = batch
        return self.run(len(batch)).copy()

    def run(self, n):
        self.batches.append(n)
        h, w = SPEC.cells
        cells = self.window[:n].mean(1).reshape(n, h, SPEC.stride, w, SPEC.stride).mean((2, 4))
        left = np.arange(w) < w // 2
        for k in range(14):
            half = left if k in RIGHT else ~left
            self.maps[:n, k] = np.roll(cells * half, self.shift, axis=2)
        return self.maps[:n]


def dots(size, left, right):
    """A picture with Gaussian dots at (x, y) each, sigma 2 cells of the window it is fitted to."""
    y, x = np.mgrid[: size[0], : size[1]]
    sigma = 2 * SPEC.stride * max(size[0] / SPEC.size[0], size[1] / SPEC.size[1])
    value = sum(
        np.exp(-((x - p[0]) ** 2 + (y - p[1]) ** 2) / (2 * sigma**2)) for p in (left, right)
    )
    return np.repeat((255 * value.clip(0, 1)).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture
def pictures(tmp_path):
    """Five pictures, higher and wider than the window's aspect, and their dots."""
    samples = []
    for i, (h, w) in enumerate([(96, 64), (120, 64), (97, 101), (150, 90), (70, 140)]):
        left, right = (w * 0.25, h * 0.3 + i), (w * 0.75, h * 0.65)
        joints = np.array([left if k in RIGHT else right for k in range(14)])
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), dots((h, w), left, right))
        samples.append(lsp_sample(joints, image=path, size=(h, w)))
    return PoseData("lsp", LSP14, tuple(samples), "test")


def largest_error(engine, data, **options):
    truth = np.stack([s.joints for s in data.samples])
    found = predict_joints(engine, data, **options)
    return np.abs(found - truth)[:, SIDES].max()  # neck and head have no side to be found on


def test_joints_come_back_in_the_pixels_of_their_picture(pictures):
    engine = DotEngine()
    assert largest_error(engine, pictures) < 0.3
    assert engine.batches == [4, 1]  # 32 asked for, 4 the largest bucket


def test_flip_swaps_sides_and_takes_away_a_shift(pictures):
    assert largest_error(DotEngine(), pictures, flip=True) < 0.3
    assert largest_error(DotEngine(shift=1), pictures) > 3
    assert largest_error(DotEngine(shift=1), pictures, flip=True) < 0.5


def test_the_box_is_the_whole_picture_unpadded(tmp_path):
    image = np.full((192, 128, 3), 200, np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), image)
    data = PoseData("lsp", LSP14, (lsp_sample(person(), image=tmp_path / "grey.png"),))
    engine = DotEngine()
    predict_joints(engine, data)
    np.testing.assert_array_equal(engine.window[0], 200)


def test_an_annotated_box_is_grown_as_in_prediction(tmp_path):
    image = np.zeros((400, 400, 3), np.uint8)
    image[76:220, 52:148] = 200  # the box grown by half round its centre
    cv2.imwrite(str(tmp_path / "box.png"), image)
    box = np.array([67.5, 99.5, 131.5, 195.5], np.float32)
    sample = replace(lsp_sample(person(), image=tmp_path / "box.png"), box=box)
    engine = DotEngine()
    predict_joints(engine, PoseData("lsp", LSP14, (sample,)))
    window = engine.window[0]
    assert window[:, 2:-2, 2:-2].min() == 200
    assert window[:, 0].max() > 0


def test_batch_and_progress(pictures):
    engine, seen = DotEngine(), []
    predict_joints(engine, pictures, batch=2, progress=seen.append)
    assert engine.batches == seen == [2, 2, 1]


def test_evaluate_model_scores_what_it_predicts(pictures):
    assert evaluate_model(DotEngine(), pictures).metrics["pck@0.2"] == 100
    assert evaluate_model(DotEngine(shift=6), pictures).metrics["pck@0.2"] < 50


def test_a_missing_picture_is_named(pictures):
    pictures.samples[1].image.unlink()
    with pytest.raises(DataError, match=r"1\.png: No such file"):
        predict_joints(DotEngine(), pictures)


def test_a_model_without_one_of_the_joints_is_refused(pictures):
    data = PoseData("coco", COCO17, pictures.samples)
    with pytest.raises(ModelError, match=r"\(lsp14\) lack nose, which coco17 has"):
        predict_joints(DotEngine(), data)


def test_joints_that_pckh_leaves_out_may_be_missing(pictures):
    """A network of 14 joints on MPII: its neck is MPII's upper neck."""
    mpii = with_joints(pictures, MPII16)
    found = predict_joints(DotEngine(), mpii)
    names = MPII16.joints
    assert [name for name, row in zip(names, found[0], strict=True) if np.isnan(row).all()] == list(
        UNSCORED
    )
    sides = [names.index(LSP14.joints[k]) for k in SIDES]
    truth = np.stack([s.joints for s in mpii.samples])
    assert np.abs(found - truth)[:, sides].max() < 0.3


def test_other_joints_keep_their_places(pictures):
    pictures = replace(pictures, samples=pictures.samples[:1])
    (there,) = with_joints(pictures, MPII16).samples
    (back,) = with_joints(with_joints(pictures, MPII16), LSP14).samples
    (sample,) = pictures.samples
    np.testing.assert_array_equal(back.joints, sample.joints)
    np.testing.assert_array_equal(back.labelled, sample.labelled)
    lost = [MPII16.joints.index(name) for name in UNSCORED]
    assert not there.labelled[lost].any()
    assert not there.visible[lost].any()
    assert with_joints(pictures, LSP14) is pictures
    pin = Skeleton("pin", ("tip",), (), (), (0.1,))
    with pytest.raises(DataError, match="lsp: has no joint of pin"):
        with_joints(pictures, pin)
