"""Where older scripts find the base of all models; training is each model's own `fit`."""

from __future__ import annotations

from typing import NoReturn

from bitlens.compat.encoding_information.models.model_base_class import MeasurementModel

__all__ = ["ProbabilisticImageModel"]

ProbabilisticImageModel = MeasurementModel

_NOT_HERE = ("evaluate_nll", "make_dataset_generators", "train_model")


def __getattr__(name: str) -> NoReturn:
    if name in _NOT_HERE:
        # An AttributeError would lose its words in `from ... import`.
        raise ImportError(
            f"{__name__} has no {name}: call `fit` and `compute_negative_log_likelihood` of a model of "
            "bitlens.compat.encoding_information.models; none is made of JAX parts that could be trained from outside"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
