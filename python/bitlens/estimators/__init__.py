"""Information in measurements: bounds and estimates, as one frozen result."""

from bitlens.estimators.fisher import FisherInformation, fisher_information
from bitlens.estimators.image_information import estimate_image_information
from bitlens.estimators.information import estimate_information
from bitlens.estimators.loss import InformationLoss
from bitlens.estimators.metric import InformationMetric
from bitlens.estimators.mutual_information import estimate_mutual_information
from bitlens.estimators.result import InformationEstimate, StandardErrorParts
from bitlens.estimators.sources import Batch, batches
from bitlens.estimators.task_information import estimate_task_information
from bitlens.estimators.training_size import TrainingSizes, bits_by_training_size

__all__ = [
    "Batch",
    "FisherInformation",
    "InformationEstimate",
    "InformationLoss",
    "InformationMetric",
    "StandardErrorParts",
    "TrainingSizes",
    "batches",
    "bits_by_training_size",
    "estimate_image_information",
    "estimate_information",
    "estimate_mutual_information",
    "estimate_task_information",
    "fisher_information",
]
