"""What a measurement gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

DIGITS = {"percent": 3, "share": 5}


@dataclass(frozen=True)
class Report:
    """The accuracy on one data set.

    Attributes:
        metrics: by the metric's own name; NaN where the set has nothing of that sort.
        per_joint: the first metric, by joint; empty where it is not taken joint by joint.
        images: how many pictures were counted.
        people: how many annotated people were counted.
        rule: how, in one line.
        unit: of the figures, as the metric's authors print it: "percent", or "share" (0 to 1).
    """

    metrics: dict[str, float]
    per_joint: dict[str, float] = field(default_factory=dict)
    images: int = 0
    people: int = 0
    rule: str = ""
    unit: str = "percent"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to 0.001 percent; None for NaN, which JSON does not know."""
        digits = DIGITS[self.unit]

        def plain(figures: dict[str, float]) -> dict[str, float | None]:
            return {k: None if np.isnan(v) else round(float(v), digits) for k, v in figures.items()}

        document: dict[str, Any] = plain(self.metrics)
        return {**document, "per_joint": plain(self.per_joint)} if self.per_joint else document
