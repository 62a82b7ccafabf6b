"""What each network costs and how far it sees, as data: reading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What a network costs and how far it sees; see `fastpose.models.count`.

    Attributes:
        gmacs: 10^9 multiply-adds of the convolutions and matrix products, for one window of the
            spec's size or, of a detector, for one frame and all the boxes that it looks at.
        receptive_field: side in input pixels of what the cell in the middle of the last map sees,
            if the input is large enough for it: it may exceed the spec's. None has no end.
    """

    gmacs: float
    receptive_field: int | None


COSTS: dict[str, Cost] = {
    "cpn-light": Cost(1.42, 678),
    "cpn50": Cost(6.89, 651),
    "cpn101": Cost(10.52, 1195),
    "cpn50-tf": Cost(6.8, 683),
    "cpn101-tf": Cost(10.44, 1227),
    "cpn50-384": Cost(15.5, 651),
    "cpn101-384": Cost(23.68, 1195),
    "tompson-flic": Cost(51.29, None),
    "tompson-mpii": Cost(58.72, None),
    "tompson-mpii-8x": Cost(37.69, None),
    "tompson-mpii-16x": Cost(32.43, None),
    "cpn50-global": Cost(4.97, 491),
    "cpn50-star": Cost(6.89, 651),
    "cpn-pin": Cost(6.78, 651),
    "cpm-flic": Cost(154.5, 887),
    "cpm-lsp": Cost(175.44, 1367),
    "cpm-vgg": Cost(88.42, 1364),
    "cpm-bn": Cost(175.44, 1367),
    "cpm-person": Cost(145.1, 868),
    "structured-lsp": Cost(173.12, 1052),
    "structured-flic": Cost(722.87, 1052),
    "adversarial-mpii": Cost(53.87, 4489),
    "adversarial-lsp": Cost(53.81, 4489),
    "hourglass2": Cost(8.99, 1289),
    "hourglass8": Cost(28.09, 5129),
    "pbn-mpii": Cost(29.48, 5198),
    "pbn6-mpii": Cost(30.49, 5198),
    "pbn-lsp": Cost(29.44, 5198),
    "pbn-mpii-norm": Cost(29.48, 5198),
    "pbn-lsp-norm": Cost(29.44, 5198),
    "fpn-light": Cost(2.86, 374),
    "fpn50": Cost(353.03, 555),
    "fpn101": Cost(486.67, 1099),
}
