"""Samples of models beside the images; of the other figures of the original, what bitlens draws instead is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

_INSTEAD = {
    "OverlayedHistograms": "matplotlib's Axes.hist",
    "add_multiple_colorbars": "matplotlib's Figure.colorbar",
    "plot_eigenvalues": "numpy.linalg.eigvalsh of the model's `cov_mat` and matplotlib's Axes.semilogy",
    "plot_intensity_coord_histogram": "matplotlib's Axes.hist2d",
    "plot_optimization_loss_history": "matplotlib's Axes.plot of what `fit` returns",
}


def plot_samples(
    samples: ArrayLike | list[ArrayLike],
    ground_truth: ArrayLike,
    model_names: Sequence[str] = ("Samples",),
    contrast_cutoff: float = 99,
) -> None:
    """A row of eight samples for each model and one of images (n, row, column), on one scale, in a new figure.

    `samples` is one stack, or a list with a stack for each of `model_names`; the scale goes from the percentile
    100 - `contrast_cutoff` of the images to `contrast_cutoff`.

    Raises:
        ValueError: not a name for each stack.
    """
    # Read here: importing the module should not wait for figures.
    from matplotlib import pyplot

    stacks = [np.asarray(each) for each in (samples if isinstance(samples, list) else [samples])]
    truth = np.asarray(ground_truth)
    if len(model_names) != len(stacks):
        raise ValueError(f"model_names: need a name for each of {len(stacks)} stacks, got {len(model_names)}")
    low, high = np.percentile(truth, [100 - contrast_cutoff, contrast_cutoff])
    figure, axes = pyplot.subplots(len(stacks) + 1, 8, figsize=(16, 2 * (len(stacks) + 1)), squeeze=False)
    for row, stack, name in zip(axes, [*stacks, truth], [*model_names, "Ground truth"], strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, image in zip(row, stack, strict=False):
            axis.imshow(image, cmap="inferno", vmin=low, vmax=high)
        row[0].set_title(name, loc="left")
    figure.tight_layout()


def __getattr__(name: str) -> NoReturn:
    if name in _INSTEAD:
        # An AttributeError would lose its words in `from ... import`.
        raise ImportError(f"{__name__} has no {name}: use {_INSTEAD[name]}, or a figure of bitlens.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
