"""Counts: each makes a row, which is held against its baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from baseline import Baseline
from suite import ROOT, Suite, assert_limits

from fastpose.bench.rows import Row, load


@pytest.fixture(autouse=True)
def _reference(request: pytest.FixtureRequest) -> None:
    """What is counted of `warp` is compared with its reference, which is torch."""
    words = getattr(request.node, "callspec", None)
    if words and any(str(value).startswith("warp") for value in words.params.values()):
        pytest.importorskip("torch", reason="torch is not installed here: nothing to compare with")


@pytest.fixture
def counted(suite: Suite, request: pytest.FixtureRequest) -> Callable[..., Row]:
    """One row of counts, nothing of which was timed.

    Called with the name of what was counted, its case, the figures, `check`, what the answer was
    compared with, and, where a baseline is to hold it, the figure that does (`held`), what decides
    it (`tools`), and the key in the file; `device` as in other rows.
    """
    module = request.node.path.relative_to(ROOT)

    def keep(
        name: str,
        case: Mapping[str, Any],
        figures: Mapping[str, int],
        *,
        check: str = "",
        held: str = "",
        tools: str = "",
        key: str = "",
        device: str = "cpu",
        absent: str = "",
    ) -> Row:
        row = Row(
            "counts", name, case, check, 1, device, figures=dict(figures), absent=absent,
            load=load(), command=f"pytest {module}",
        )  # fmt: skip
        if held:
            update = request.config.getoption("--update-counts")
            others = {figure: value for figure, value in figures.items() if figure != held}
            row = Baseline(held, tools, update).hold(row, key, others)
        suite.add(row)
        assert_limits(row)
        return row

    return keep
