"""A sum tree, which draws many leaves at once in proportion to their weights. Plain numpy, no jax.

Source: spec section 10.
"""

from __future__ import annotations

import numpy as np

BRANCHING = 16


class SumTree:
    """Owns `planes` weights for each of `size` leaves, and their sums in the nodes above. Each node has 16 children.

    levels: the arrays from the leaves [size, planes] to the root [1, planes]; all but the root are padded to a multiple
    of 16 nodes. A sum is always recomputed from its children, so rounding errors do not accumulate and equal leaves
    give equal sums.
    """

    def __init__(self, size: int, planes: int = 1):
        self.size = size
        self.levels: list[np.ndarray] = []
        while True:
            nodes = -(-size // BRANCHING) * BRANCHING if size > 1 else 1
            self.levels.append(np.zeros((nodes, planes)))
            if size <= 1:
                break
            size = nodes // BRANCHING

    @property
    def leaves(self) -> np.ndarray:
        """Returns the weights [size, planes] float64 of all leaves. Only `update` and `fill` may change them."""
        return self.levels[0][: self.size]

    @property
    def total(self) -> np.ndarray:
        """Returns the sum of all weights in each plane, [planes]."""
        return self.levels[-1][0]

    def update(self, leaf: np.ndarray, weight: np.ndarray) -> None:
        """Sets the weights of leaves [N] to `weight` [N, planes] >= 0. The last entry of a leaf is kept."""
        self.levels[0][leaf] = weight
        for below, level in zip(self.levels, self.levels[1:], strict=False):
            leaf = np.unique(leaf // BRANCHING)
            level[leaf] = _sums(below, leaf)

    def fill(self, weight: np.ndarray) -> None:
        """Writes the weights [size, planes] of all leaves."""
        self.leaves[...] = weight
        for below, level in zip(self.levels, self.levels[1:], strict=False):
            parents = np.arange(len(below) // BRANCHING)
            level[parents] = _sums(below, parents)

    def find(self, share: np.ndarray, plane: int = 0) -> np.ndarray:
        """Returns the leaf [N] at which the cumulative weight exceeds `share` [N] times the total weight of the plane.

        share: numbers in [0, 1). If they are uniform random numbers, each leaf is drawn in proportion to its weight.
        Never returns a leaf of weight 0. The total must be positive.
        """
        node = np.zeros(len(share), np.int64)
        rest = share * self.total[plane]
        for level in reversed(self.levels[:-1]):
            weight = level.reshape(-1, BRANCHING, level.shape[1])[node, :, plane]
            ends = np.cumsum(weight, 1)
            child = (ends <= rest[:, None]).sum(1)
            # Rounding may leave a remainder beyond all children, which then goes to the last child with a weight.
            last = BRANCHING - 1 - np.argmax(weight[:, ::-1] > 0, 1)
            child = np.minimum(child, last)
            each = np.arange(len(child))
            rest = np.maximum(0, rest - ends[each, child] + weight[each, child])
            node = node * BRANCHING + child
        return node


def _sums(level: np.ndarray, parents: np.ndarray) -> np.ndarray:
    """Returns the sums [N, planes] of the children of nodes `parents` [N]. level: the level of the children."""
    return level.reshape(-1, BRANCHING, level.shape[1])[parents].sum(1)
