"""Groups of joints from the mutual information of their places."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from fastpose.datasets import PoseData, Sample, open_poses
from fastpose.errors import DataError
from fastpose.models.groups import FOUND, found_groups, partition
from fastpose.skeleton import LSP14, MPII16
from fastpose.train.grouping import (
    Places,
    affinities,
    cells,
    cluster,
    main,
    mutual_information,
    places,
    spectral_gaps,
)

CELLS = 16


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def entropy(found: np.ndarray) -> float:
    shares = np.bincount(found) / len(found)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


# Information


def test_a_joint_tells_its_own_entropy(rng: np.random.Generator) -> None:
    found = np.minimum(rng.geometric(0.2, (5000, 3)), CELLS - 1)
    information = mutual_information(found, CELLS)
    expected = [entropy(column) for column in found.T]
    np.testing.assert_allclose(np.diag(information), expected, rtol=1e-12)


def test_independent_joints_tell_the_bias_of_a_small_sample(rng: np.random.Generator) -> None:
    count = 20_000
    found = rng.integers(0, CELLS, (count, 6))
    information = mutual_information(found, CELLS)
    pairs = information[~np.eye(6, dtype=bool)]
    bias = (CELLS - 1) ** 2 / (2 * count)
    np.testing.assert_allclose(pairs.mean(), bias, rtol=0.1)
    assert pairs.max() < 1.5 * bias


def test_a_copied_joint_tells_the_entropy(rng: np.random.Generator) -> None:
    own = rng.integers(0, CELLS, 3000)
    moved = (own + 3) % CELLS  # elsewhere, yet fully known
    information = mutual_information(np.stack((own, moved), axis=1), CELLS)
    np.testing.assert_allclose(information, entropy(own), rtol=1e-12)


def test_two_values_that_agree_three_times_of_four() -> None:
    found = np.array([[0, 0]] * 3 + [[0, 1]] + [[1, 1]] * 3 + [[1, 0]])
    expected = np.log(2) + 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    np.testing.assert_allclose(mutual_information(found, 2)[0, 1], expected, rtol=1e-12)


def test_information_is_symmetric_and_of_the_people_with_both_joints(
    rng: np.random.Generator,
) -> None:
    found = rng.integers(-1, CELLS, (2000, 4))  # -1: the joint has no cell
    found[:, 1] = np.where(found[:, 1] < 0, -1, np.maximum(found[:, 0], 0))
    information = mutual_information(found, CELLS)
    assert np.array_equal(information, information.T)
    both = (found[:, 0] >= 0) & (found[:, 1] >= 0)
    np.testing.assert_allclose(information[0, 1], entropy(found[both, 0]), rtol=1e-12)


def test_joints_that_nobody_has_together_are_told() -> None:
    with pytest.raises(DataError, match="nobody has both joints 0 and 1"):
        mutual_information(np.array([[-1, 2], [3, -1]]), CELLS)


# Places


def person(centre: float, scale: float, joints: np.ndarray, labelled: np.ndarray) -> Sample:
    box = np.array([-1, -1, 1, 1]) * 100 * scale + centre
    return Sample(
        Path("x.jpg"),
        None,
        joints.astype(np.float32),
        labelled,
        labelled,
        box.astype(np.float32),
    )


def test_places_are_relative_to_the_enlarged_box() -> None:
    joints = np.full((16, 2), 500.0)
    joints[0] = 500 - 125, 500 + 125  # an eighth of the window's 250 pixels inside its corner
    joints[1] = 500 + 249, 500
    found = places(PoseData("set", MPII16, (person(500, 2, joints, np.ones(16, bool)),)))
    np.testing.assert_allclose(found.positions[0, 0], (0.25, 0.75))
    np.testing.assert_allclose(found.positions[0, 1], (0.998, 0.5))
    np.testing.assert_allclose(found.positions[0, 2], (0.5, 0.5))


def test_people_without_boxes_are_refused() -> None:
    sample = Sample(Path("x.jpg"), None, np.zeros((14, 2)), np.ones(14, bool), np.ones(14, bool))
    with pytest.raises(DataError, match="lsp: 2 of 2 people have no box"):
        places(PoseData("lsp", LSP14, (sample, sample)))


def test_cells_count_rows_of_sixteen_and_leave_out_what_is_not_there() -> None:
    positions = np.array(
        [[[0.0, 0.0], [0.99, 0.0], [0.0, 0.99], [0.5, 0.26], [1.0, 0.5], [-0.01, 0]]]
    )
    labelled = np.ones((1, 6), bool)
    assert cells(positions, labelled).tolist() == [[0, 15, 240, 72, -1, -1]]
    assert cells(positions, ~labelled).tolist() == [[-1] * 6]


def test_mirror_images_exchange_the_sides(rng: np.random.Generator) -> None:
    people = Places(MPII16, rng.random((3, 16, 2)), rng.random((3, 16)) < 0.5)
    both = people.mirrored()
    assert len(both) == 6
    left, right = MPII16.joints.index("left_knee"), MPII16.joints.index("right_knee")
    np.testing.assert_allclose(both.positions[3:, left, 0], 1 - people.positions[:, right, 0])
    np.testing.assert_array_equal(both.positions[3:, left, 1], people.positions[:, right, 1])
    np.testing.assert_array_equal(both.labelled[3:, left], people.labelled[:, right])


def test_joints_of_lsp_are_taken_from_those_of_mpii(rng: np.random.Generator) -> None:
    people = Places(MPII16, rng.random((2, 16, 2)), np.ones((2, 16), bool))
    fewer = people.with_joints(LSP14)
    for index, name in enumerate(LSP14.joints):
        place = MPII16.joints.index({"neck": "upper_neck"}.get(name, name))
        np.testing.assert_array_equal(fewer.positions[:, index], people.positions[:, place])
    with pytest.raises(DataError, match="people of lsp14 have no pelvis, thorax"):
        fewer.with_joints(MPII16)


# Clusters


def blocks() -> np.ndarray:
    """Information of three groups: 0, 3 and 1, 4, 5 and 2, 6."""
    information = np.full((7, 7), 0.2)
    for group in ([0, 3], [1, 4, 5], [2, 6]):
        information[np.ix_(group, group)] = 1.5
    np.fill_diagonal(information, 4.0)
    return information


def test_pairs_are_brought_to_zero_and_one_without_the_diagonal() -> None:
    affinity = affinities(blocks())
    assert np.unique(affinity).tolist() == [0, 1]
    assert (np.diag(affinity) == 0).all()
    assert affinity[0, 3] == affinity[4, 5] == 1


def test_clusters_are_the_groups_that_tell_of_each_other() -> None:
    pytest.importorskip("sklearn")
    noise = np.random.default_rng(1).random((7, 7)) * 0.1
    affinity = affinities(blocks() + noise + noise.T)
    assert cluster(affinity, 3) == ((0, 3), (1, 4, 5), (2, 6))
    assert np.argmax(spectral_gaps(affinity)) + 1 == 3


@pytest.mark.parametrize("count", [1, 8])
def test_refuses_other_numbers_of_clusters(count: int) -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(DataError, match=f"7 joints make 2 to 7 clusters, not {count}"):
        cluster(affinities(blocks()), count)


@pytest.mark.parametrize("joints", ["mpii16", "lsp14"])
@pytest.mark.parametrize("count", [5, 6])
def test_kept_groups_are_the_clusters_of_the_kept_information(joints: str, count: int) -> None:
    pytest.importorskip("sklearn")
    information = np.array(found_groups()[joints]["information"])
    assert cluster(affinities(information), count) == partition(f"{joints}-data{count}").groups


# The published people


@pytest.fixture(scope="module")
def annotations(data_dir: Path) -> Path:
    return data_dir / "mpii_annotations" / "mpii_16joints.npz"


def scaled(annotations: Path, split: str, *, mirror: bool) -> np.ndarray:
    people = places(open_poses(f"mpii:{annotations}", split))
    people = people.mirrored() if mirror else people
    return affinities(mutual_information(cells(people.positions, people.labelled)))


LEGS, HIPS = (0, 1, 4, 5), (2, 3, 6)
RIGHT_ANKLE, RIGHT_KNEE, LEFT_ANKLE, LEFT_WRIST = 0, 1, 5, 15


def entries(affinity: np.ndarray) -> list[float]:
    others = (LEFT_ANKLE, RIGHT_KNEE, LEFT_WRIST)
    return [round(float(affinity[RIGHT_ANKLE, other]), 2) for other in others]


def test_validation_people_and_their_mirror_images_make_the_published_groups(
    annotations: Path,
) -> None:
    affinity = scaled(annotations, "val", mirror=True)
    assert cluster(affinity, 5) == (LEGS, HIPS, (7, 8, 9, 12, 13), (10, 11), (14, 15))
    np.testing.assert_allclose(entries(affinity), [0.79, 0.89, 0.32], atol=0.011)


def test_validation_people_make_six_groups_by_parting_the_head_from_the_shoulders(
    annotations: Path,
) -> None:
    affinity = scaled(annotations, "val", mirror=False)
    assert cluster(affinity, 6) == (LEGS, HIPS, (7, 12, 13), (8, 9), (10, 11), (14, 15))
    assert cluster(affinity, 5) == (LEGS, HIPS, (7, 8, 9), (10, 11, 12), (13, 14, 15))
    assert entries(affinity) == [0.91, 0.95, 0.46]


def test_the_kept_file_is_what_the_command_writes(
    annotations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "groups.json"
    for extra in ([], ["--joints", "lsp14"]):
        options = ["--mirror", "--clusters", "5", "6", "--out", str(path), *extra]
        main(["--data", f"mpii:{annotations}", *options])
    written, kept = json.loads(path.read_text()), found_groups()
    for joints in ("mpii16", "lsp14"):
        new, old = dict(written[joints]), dict(kept[joints])
        for key in ("information", "gaps"):
            np.testing.assert_allclose(new.pop(key), old.pop(key), atol=2e-4)
        assert new == old
    assert FOUND.read_text().startswith('{\n  "lsp14"')
    printed = capsys.readouterr().out
    assert "mpii16: 22246 people and their mirror images" in printed
    assert "  0 right_ankle, 1 right_knee, 4 left_knee, 5 left_ankle\n" in printed


# The command


def test_command_prints_one_document_or_one_line_of_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    count = 40
    np.savez(
        tmp_path / "mpii_16joints.npz",
        joints=np.concatenate(
            (500 + 100 * rng.standard_normal((count, 16, 2)), np.ones((count, 16, 1))), axis=2
        ),
        center=np.full((count, 2), 500.0),
        scale=np.full(count, 4.0),
        is_val=np.zeros(count),
        image=np.array(["x.jpg"] * count),
        image_wh=np.full((count, 2), 1000),
        head_size=np.full(count, np.nan),
    )
    data = f"mpii:{tmp_path / 'mpii_16joints.npz'}"
    main(["--data", data, "--clusters", "3", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["joints"], report["people"], report["mirrored"]) == ("mpii16", count, False)
    assert sorted(itertools.chain(*report["clusters"]["3"])) == list(range(16))
    assert str(tmp_path) not in report["command"]
    broken, other = tmp_path / "broken.json", tmp_path / "other.npz"
    broken.write_text("[1]")
    for options, words in (
        (["--data", f"mpii:{other}"], "other.npz"),
        (["--data", data, "--clusters", "17"], "16 joints make 2 to 16 clusters, not 17"),
        (["--data", data, "--out", str(broken)], "broken.json: no file of part groups"),
        (["--data", data, "--out", str(tmp_path / "nowhere" / "x.json")], "nowhere"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(options)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert broken.read_text() == "[1]"
