"""What vectors say linearly: ridge regression held out by clip, and how alike two bodies' vectors are (linear CKA).

Owns statistics on arrays; knows no model and no clip (probes.py does).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
# As many of every model: the more are taken, the more alike the rest may be. The least of our latents have 8 numbers.
NUM_BODY_DIRECTIONS = 2


def one_hot(codes: npt.NDArray[np.int64], num_codes: int) -> Array:
    """[N, num_tokens] to [N, num_tokens * num_codes]."""
    return (codes[..., None] == np.arange(num_codes)).reshape(len(codes), -1).astype(np.float64)


def readout_r2(inputs: npt.ArrayLike, targets: npt.ArrayLike, groups: npt.ArrayLike, num_folds: int = 5) -> float:
    """R2 of a ridge read-out on groups it was not fitted on: 1 is exact, 0 the mean, below 0 worse than the mean.

    Rows of a group are never on both sides, and the penalty is chosen within the fitted groups. Raises ValueError for
    fewer groups than twice the folds, and for targets that are all the same.
    """
    missed, total = readout_errors(inputs, targets, groups, num_folds)
    if not total.sum():
        raise ValueError("the targets are all the same: nothing to read out")
    return 1 - float(missed.sum() / total.sum())


def readout_errors(
    inputs: npt.ArrayLike, targets: npt.ArrayLike, groups: npt.ArrayLike, num_folds: int = 5
) -> tuple[Array, Array]:
    """What readout_r2 is made of: squared errors of the read-out and of the mean, [rows] each, held out by group."""
    y = _columns(targets)
    fold = _folds(groups, num_folds)
    total = np.zeros(len(y))
    for held_out in range(num_folds):
        test = fold == held_out
        total[test] = np.square(y[test] - y[~test].mean(0)).sum(1)
    return np.square(readout_residuals(inputs, y, groups, num_folds)).sum(1), total


def readout_residuals(
    inputs: npt.ArrayLike, targets: npt.ArrayLike, groups: npt.ArrayLike, num_folds: int = 5
) -> Array:
    """What the read-out of readout_r2, held out by group, leaves of the targets, [rows, dim]."""
    x, y = np.asarray(inputs, float), _columns(targets)
    fold, left = _folds(groups, num_folds), np.zeros_like(y)
    for held_out in range(num_folds):
        test = fold == held_out
        tune = fold == (held_out + 1) % num_folds
        fit = ~test & ~tune
        penalty = min(_PENALTIES, key=lambda each: np.square(_left(x[fit], y[fit], x[tune], y[tune], each)).sum())
        left[test] = _left(x[~test], y[~test], x[test], y[test], penalty)
    return left


def linear_cka(x: npt.ArrayLike, y: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Similarity in [0, 1] of two representations of the same N things, row by row (Kornblith et al., 1905.00414).

    With `weights` [N] a row counts as if it were there so many times.
    """
    weight = np.ones(np.shape(x)[0]) if weights is None else np.asarray(weights, float)
    a, b = (np.asarray(each, float) for each in (x, y))
    a, b = ((each - np.average(each, 0, weight)) * np.sqrt(weight)[:, None] for each in (a, b))
    return float(np.square(b.T @ a).sum() / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b) + 1e-12))


def body_directions(
    vectors: npt.ArrayLike, is_second: npt.ArrayLike, num_directions: int = NUM_BODY_DIRECTIONS
) -> Array:
    """Orthonormal directions [num_directions, dim] by which a linear classifier tells two bodies apart.

    Logistic regressions one after another, each on what those before it left. Paper B says "logistic-regression
    directions and PCA" and gives neither code nor number: the order and the number are ours. Fewer are returned where
    nothing is left that differs at all.
    """
    x, label = np.asarray(vectors, float), np.asarray(is_second, bool)
    x = (x - x.mean(0)) / (x.std() + 1e-12)
    found: list[Array] = []
    for _ in range(min(num_directions, x.shape[1])):
        weights = _logistic(x, label)
        if not np.linalg.norm(weights):
            break
        found.append(weights / np.linalg.norm(weights))
        x = x - np.outer(x @ found[-1], found[-1])
    return np.stack(found) if found else np.zeros((0, x.shape[1]))


def without(vectors: npt.ArrayLike, directions: Array) -> Array:
    """The vectors with nothing left along orthonormal `directions`."""
    x = np.asarray(vectors, float)
    return x - (x @ directions.T) @ directions


def matched(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """For each row of `second` [M, dim] the row of `first` [N, dim] nearest to it."""
    a, b = np.asarray(first, float), np.asarray(second, float)
    return np.array([int(np.square(a - row).sum(1).argmin()) for row in b], np.int64)


def _columns(targets: npt.ArrayLike) -> Array:
    y = np.asarray(targets, float)
    return y.reshape(len(y), -1)


def _folds(groups: npt.ArrayLike, num_folds: int) -> npt.NDArray[np.int64]:
    """The fold of each row. Raises ValueError for too few groups."""
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2 * num_folds:
        raise ValueError(f"{len(names)} clips are too few for {num_folds} folds, expected at least {2 * num_folds}")
    return (np.random.default_rng(0).permutation(len(names)) % num_folds)[group]


def _left(fit_x: Array, fit_y: Array, x: Array, y: Array, penalty: float) -> Array:
    """[rows of x, dim of y]"""
    mean_x, mean_y = fit_x.mean(0), fit_y.mean(0)
    centred = fit_x - mean_x
    gram = centred.T @ centred + penalty * np.eye(centred.shape[1])
    weights = np.linalg.solve(gram, centred.T @ (fit_y - mean_y))
    return y - mean_y - (x - mean_x) @ weights


def _logistic(x: Array, label: npt.NDArray[np.bool_], num_steps: int = 30, penalty: float = 1e-3) -> Array:
    """Weights by Newton's steps."""
    design = np.concatenate([x, np.ones((len(x), 1))], 1)
    weights = np.zeros(design.shape[1])
    shrink = penalty * np.eye(len(weights))
    for _ in range(num_steps):
        guess = 1 / (1 + np.exp(-np.clip(design @ weights, -30, 30)))
        gradient = design.T @ (guess - label) / len(x) + shrink @ weights
        curvature = (design * (guess * (1 - guess))[:, None]).T @ design / len(x) + shrink
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    return weights[:-1]
