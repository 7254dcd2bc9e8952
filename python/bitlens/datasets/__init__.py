"""Real data: scenes bundled with scikit-image and scikit-learn, image patches, readers of image stacks."""

from bitlens.datasets.bundled import (
    FITTING_SCENES,
    REPORTING_SCENES,
    SCENES,
    linearize_srgb,
    load_scene,
    scene_patches,
)
from bitlens.datasets.folders import FolderImages, read_images
from bitlens.datasets.patches import Patches, random_patches
from bitlens.datasets.stacks import Measurements, read_measurements, read_stack

__all__ = [
    "FITTING_SCENES",
    "REPORTING_SCENES",
    "SCENES",
    "FolderImages",
    "Measurements",
    "Patches",
    "linearize_srgb",
    "load_scene",
    "random_patches",
    "read_images",
    "read_measurements",
    "read_stack",
    "scene_patches",
]
