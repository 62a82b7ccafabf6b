"""Poses as trees of parts: the best placement of all parts together."""

from __future__ import annotations

from collections.abc import Sequence


def root_first(parents: Sequence[int], names: Sequence[str] | None = None) -> list[int]:
    """The nodes of a tree in an order in which each comes after its parent.

    Args:
        parents: [P] index of each node's parent, -1 for the root.
        names: what messages call the nodes; None for their indices.

    Raises:
        ValueError: there is no root or more than one, a parent is no node, or nodes form a ring;
            the text names a node at fault.
    """
    names = [str(i) for i in range(len(parents))] if names is None else names
    roots = [i for i, parent in enumerate(parents) if parent == -1]
    if len(roots) != 1:
        listed = ", ".join(names[i] for i in roots) or "none"
        raise ValueError(f"one part must be the root, with parent -1; there are: {listed}")
    for name, parent in zip(names, parents, strict=True):
        if not -1 <= parent < len(parents):
            raise ValueError(
                f"the parent of part {name} must be -1 to {len(parents) - 1}, got {parent}"
            )
    order = roots
    for node in order:
        order.extend(i for i, parent in enumerate(parents) if parent == node)
    if len(order) < len(parents):
        lost = next(i for i in range(len(parents)) if i not in order)
        raise ValueError(f"part {names[lost]} has no way to the root: its parents form a ring")
    return order
