"""The direction that separates two kinds of texts in a model's hidden states, layer by layer.

A difference of means, as in Marks and Tegmark (arXiv 2310.06824) and in representation engineering
(arXiv 2310.01405). All functions take hidden states of shape (pairs, 2, layers, width): of each
pair first the text that shows the behaviour, then the other.
"""

from collections.abc import Sequence

import numpy as np

SHUFFLES = 20  # random labellings behind `shuffled_aurocs`


def folds_of(scenarios: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each pair, shape (pairs,). Pairs of one scenario are in the same fold."""
    names = sorted(set(scenarios))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[index]: rank % folds for rank, index in enumerate(order)}
    return np.array([fold[name] for name in scenarios])


def directions(states: np.ndarray) -> np.ndarray:
    """Mean of the first texts less mean of the second, shape (layers, width), float64."""
    means: np.ndarray = states.mean(axis=0, dtype=np.float64)
    difference: np.ndarray = means[0] - means[1]
    return difference


def held_out_scores(states: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """How well each pair is ranked by the direction of the other folds, shape (pairs, layers).

    A pair's score is the mean of two shares, ties counted as one half: the second texts of its fold
    that lie below its first text, and the first texts of its fold that lie above its second text.
    The mean over the pairs of a fold is the fold's AUROC (Mann and Whitney's U over the number of
    comparisons), and the mean over all pairs is that of the folds, by size.
    """
    scores = np.empty((len(states), states.shape[2]))
    for fold in np.unique(folds):
        held_out = folds == fold
        direction = directions(states[~held_out])
        projections = np.einsum("pclw,lw->pcl", states[held_out].astype(np.float64), direction)
        first, second = projections[:, None, 0], projections[None, :, 1]
        wins = (first > second) + 0.5 * (first == second)
        scores[held_out] = (wins.mean(axis=1) + wins.mean(axis=0)) / 2
    return scores


def shuffled_aurocs(states: np.ndarray, folds: np.ndarray, seed: int) -> np.ndarray:
    """Held-out AUROC by layer where the labels say nothing, shape (layers,).

    The mean over SHUFFLES labellings, each of which swaps the two texts of pairs at random.
    """
    random = np.random.default_rng(seed)
    total = np.zeros(states.shape[2])
    for _ in range(SHUFFLES):
        swapped = random.random(len(states)) < 0.5
        labelled = np.where(swapped[:, None, None, None], states[:, ::-1], states)
        total += held_out_scores(labelled, folds).mean(axis=0)
    return total / SHUFFLES
