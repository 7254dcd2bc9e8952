"""Ready-made imaging systems with realistic numbers: `encoder, noise, scenes = systems.camera(...)`."""

from bitlens.systems.camera import DESCRIPTION as _CAMERA
from bitlens.systems.camera import CameraDesign, camera
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

__all__ = ["CameraDesign", "ImagingSystem", "SystemDescription", "camera", "descriptions"]


def descriptions() -> tuple[SystemDescription, ...]:
    """What systems there are: name, designs, formula and reference of each, in alphabetical order."""
    return (_CAMERA,)
