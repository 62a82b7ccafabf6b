"""Accuracy: from predictions and annotations to the figures that papers print."""

from __future__ import annotations

from fastpose.evaluate.boxes import FLOOR, average_precision, evaluate_boxes, evaluate_detector
from fastpose.evaluate.coco import (
    annotated_boxes,
    detected_boxes,
    evaluate_people,
    evaluate_results,
    listed_boxes,
    people_results,
)
from fastpose.evaluate.joints import correct, evaluate_predictions, pck, pcp
from fastpose.evaluate.model import evaluate_model, predict_joints, predict_people
from fastpose.evaluate.report import Report

__all__ = [
    "FLOOR",
    "Report",
    "annotated_boxes",
    "average_precision",
    "correct",
    "detected_boxes",
    "evaluate_boxes",
    "evaluate_detector",
    "evaluate_model",
    "evaluate_people",
    "evaluate_predictions",
    "evaluate_results",
    "listed_boxes",
    "pck",
    "pcp",
    "people_results",
    "predict_joints",
    "predict_people",
]
