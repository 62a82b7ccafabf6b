"""COCO's average precision of poses, through its evaluation in C++."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastpose.datasets import CocoData, read_image
from fastpose.errors import BackendError
from fastpose.evaluate.model import predict_people
from fastpose.evaluate.report import Report
from fastpose.people import drop_duplicates
from fastpose.sinks.coco import coco_results
from fastpose.types import Boxes, People

if TYPE_CHECKING:
    from fastpose.detect import BoxesFile, Detector
    from fastpose.engines import Engine

METRICS = ("ap", "ap50", "ap75", "apm", "apl", "ar", "ar50", "ar75", "arm", "arl")
RULE = "AP over object keypoint similarities of 0.50 to 0.95, at most 20 poses a picture"


def evaluate_people(
    engine: Engine,
    data: CocoData,
    found: Sequence[Boxes],
    *,
    suppress: bool = True,
    flip: bool = False,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Run a model over the boxes of each picture and score the poses.

    A pose is ranked by its box times the mean of its joints (Chen et al., Cascaded Pyramid Network,
    CVPR 2018).

    Args:
        engine: the model.
        data: the pictures and the truth.
        found: the boxes of each picture.
        suppress: drop all but one of several poses that lie on one another, as prediction does for
            what a detector found.
        flip: see `predict_joints`.
        batch: as there.
        progress: as there.

    Raises:
        BackendError: faster-coco-eval is not installed.
        ModelError, DataError: see `predict_joints`.
    """
    _library()  # before the model runs for hours
    people = predict_people(engine, data, found, flip=flip, batch=batch, progress=progress)
    if suppress:
        people = [drop_duplicates(p) for p in people]
    return evaluate_results(data, people_results(data, people))


def people_results(data: CocoData, people: Sequence[People]) -> list[dict[str, Any]]:
    """COCO's rows of results for the people of each of the set's pictures."""
    return [
        row | {"category_id": data.category}
        for number, found in zip(data.pictures, people, strict=True)
        for row in coco_results(found, number)
    ]


def evaluate_results(data: CocoData, results: Sequence[dict[str, Any]]) -> Report:
    """Average precision and recall by object keypoint similarity.

    Lin et al., Microsoft COCO: Common Objects in Context, ECCV 2014, by the package
    faster-coco-eval, which gives the figures of COCO's own tool.

    Args:
        data: the truth.
        results: as `read_coco_results` gives them; those of other pictures do not count.

    Returns:
        Shares from 0 to 1: ap, ap50, ap75, apm and apl (people of a medium and large area), ar,
        ar50, ar75, arm, arl; NaN where the set has nobody of that area.

    Raises:
        BackendError: faster-coco-eval is not installed.
    """
    evaluation = run_evaluation(data, results)
    figures = [float(value) for value in evaluation.stats]
    return Report(
        {k: np.nan if v < 0 else v for k, v in zip(METRICS, figures, strict=True)},
        images=len(data.pictures),
        people=len(data.samples),
        rule=RULE,
        unit="share",
    )


def run_evaluation(data: CocoData, results: Sequence[dict[str, Any]]) -> Any:
    """The library's `COCOeval_faster`, run: `stats`, and `ious` by picture and category."""
    library = _library()
    truth = library.COCO(
        {
            "images": [{"id": number} for number in data.pictures],
            "categories": [{"id": data.category, "name": "person"}],
            # numbers from 1: COCO's tool takes a match with 0 for none
            "annotations": [{**row, "id": k} for k, row in enumerate(data.people, 1)],
        }
    )
    rows = [dict(row) for row in results if row["image_id"] in data.pictures]
    if not all("bbox" in row for row in rows):  # the first row decides for all of them
        rows = [{k: v for k, v in row.items() if k != "bbox"} for row in rows]
    evaluation = library.COCOeval_faster(truth, truth.loadRes(rows), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def annotated_boxes(data: CocoData) -> list[Boxes]:
    """The true boxes, with score 1, of the people with joints in each picture."""
    boxes: dict[Any, list[Any]] = {file: [] for file in data.pictures.values()}
    for sample in data.samples:
        boxes[sample.image].append(sample.box)
    return [
        Boxes(np.array(b, np.float32).reshape(-1, 4), np.ones(len(b), np.float32))
        for b in boxes.values()
    ]


def listed_boxes(data: CocoData, file: BoxesFile) -> list[Boxes]:
    """The boxes of a file in each picture; results are looked up by `image_id`."""
    return [
        file.boxes_for(place, str(number) if file.numbered else path.stem)
        for place, (number, path) in enumerate(data.pictures.items())
    ]


def detected_boxes(
    data: CocoData, detector: Detector, *, progress: Callable[[int], None] | None = None
) -> list[Boxes]:
    """What a detector finds in each picture; `progress` is called after each with 1.

    Raises:
        DataError: a picture is missing or cannot be read.
    """
    found = []
    for path in data.pictures.values():
        found += detector([read_image(path)])
        if progress:
            progress(1)
    return found


def _library() -> Any:
    try:
        import faster_coco_eval
    except ImportError:
        raise BackendError(
            "the average precision of poses needs faster-coco-eval; install the extra: "
            "fastpose-inference[eval]"
        ) from None
    return faster_coco_eval
