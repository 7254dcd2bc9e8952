"""How many bits about the scene a measurement carries, and how to make it carry more."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# name -> module, imported on first use: `bitlens --help` need not wait for torch.
_PUBLIC = {
    "GaussianNoise": "bitlens.noise",
    "PoissonNoise": "bitlens.noise",
    "PoissonGaussianNoise": "bitlens.noise",
    "InformationEstimate": "bitlens.estimators",
    "estimate_image_information": "bitlens.estimators",
    "estimate_information": "bitlens.estimators",
    "estimate_mutual_information": "bitlens.estimators",
    "estimate_task_information": "bitlens.estimators",
    "FisherInformation": "bitlens.estimators",
    "fisher_information": "bitlens.estimators",
    "InformationLoss": "bitlens.estimators",
    "InformationMetric": "bitlens.estimators",
    "DesignResult": "bitlens.design",
    "SubsetResult": "bitlens.design",
    "choose_subset": "bitlens.design",
    "optimize_design": "bitlens.design",
    "CalibrationResult": "bitlens.noise",
    "NoiseCheck": "bitlens.noise",
    "calibrate": "bitlens.noise",
    "check_noise": "bitlens.noise",
    "EntropyEstimate": "bitlens.noise",
    "conditional_entropy": "bitlens.noise",
    "compat": "bitlens.compat",
    "critics": "bitlens.critics",
    "datasets": "bitlens.datasets",
    "densities": "bitlens.densities",
    "design": "bitlens.design",
    "encoders": "bitlens.encoders",
    "estimators": "bitlens.estimators",
    "losses": "bitlens.losses",
    "noise": "bitlens.noise",
    "ops": "bitlens.ops",
    "plots": "bitlens.plots",
    "systems": "bitlens.systems",
    "ValidationResult": "bitlens.validation",
    "train_end_to_end": "bitlens.validation",
    "validate": "bitlens.validation",
    "validation": "bitlens.validation",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from bitlens import (
        compat,
        critics,
        datasets,
        densities,
        design,
        encoders,
        estimators,
        losses,
        noise,
        ops,
        plots,
        systems,
        validation,
    )
    from bitlens.design import DesignResult, SubsetResult, choose_subset, optimize_design
    from bitlens.estimators import (
        FisherInformation,
        InformationEstimate,
        InformationLoss,
        InformationMetric,
        estimate_image_information,
        estimate_information,
        estimate_mutual_information,
        estimate_task_information,
        fisher_information,
    )
    from bitlens.noise import (
        CalibrationResult,
        EntropyEstimate,
        GaussianNoise,
        NoiseCheck,
        PoissonGaussianNoise,
        PoissonNoise,
        calibrate,
        check_noise,
        conditional_entropy,
    )
    from bitlens.validation import ValidationResult, train_end_to_end, validate


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'bitlens' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    value = module if _PUBLIC[name] == f"bitlens.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
