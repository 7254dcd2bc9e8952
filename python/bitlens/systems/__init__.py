"""Ready-made imaging systems with realistic numbers: `encoder, noise, scenes = systems.camera(...)`.

Scenes of your own go in as `scenes=`: `datasets.read_images(folder)` reads pictures and `datasets.read_stack(path)`
npy, npz, TIFF and HDF5, as (n, channel, row, column); `datasets.linearize_srgb` turns photographs into light, and
`datasets.random_patches` cuts them to the size that an encoder takes (`encoder.scene_size` of the cameras). The
infrared camera takes kelvin.
"""

from bitlens.systems._thermal_radiation import mercury_cadmium_cutoff_um, photodiode_efficiency
from bitlens.systems.camera import DESCRIPTION as _CAMERA
from bitlens.systems.camera import CameraDesign, camera
from bitlens.systems.coded_aperture_spectral_imager import DESCRIPTION as _CODED_APERTURE_SPECTRAL_IMAGER
from bitlens.systems.coded_aperture_spectral_imager import (
    CodedApertureSpectralImager,
    SpectralImagerDesign,
    coded_aperture_spectral_imager,
)
from bitlens.systems.color_camera import DESCRIPTION as _COLOR_CAMERA
from bitlens.systems.color_camera import ColorCamera, ColorCameraDesign, color_camera
from bitlens.systems.face_recognition_camera import DESCRIPTION as _FACE_RECOGNITION_CAMERA
from bitlens.systems.face_recognition_camera import FaceCameraDesign, FaceScenes, face_recognition_camera, face_scenes
from bitlens.systems.fluorescence_microscope import DESCRIPTION as _FLUORESCENCE_MICROSCOPE
from bitlens.systems.fluorescence_microscope import FluorescenceDesign, FluorescenceMicroscope, fluorescence_microscope
from bitlens.systems.fourier_ptychography import DESCRIPTION as _FOURIER_PTYCHOGRAPHY
from bitlens.systems.fourier_ptychography import (
    FourierPtychography,
    PtychographyDesign,
    fourier_ptychography,
    led_array,
)
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription
from bitlens.systems.infrared_camera import DESCRIPTION as _INFRARED_CAMERA
from bitlens.systems.infrared_camera import InfraredCamera, InfraredDesign, infrared_camera, kelvin_from_counts
from bitlens.systems.inline_holography import DESCRIPTION as _INLINE_HOLOGRAPHY
from bitlens.systems.inline_holography import HolographyDesign, InlineHologram, inline_holography
from bitlens.systems.lensless_camera import DESCRIPTION as _LENSLESS_CAMERA
from bitlens.systems.lensless_camera import LenslessCamera, LenslessDesign, lensless_camera
from bitlens.systems.mri import DESCRIPTION as _MRI
from bitlens.systems.mri import MRIDesign, mri
from bitlens.systems.optical_telescope import DESCRIPTION as _OPTICAL_TELESCOPE
from bitlens.systems.optical_telescope import Telescope, TelescopeDesign, optical_telescope
from bitlens.systems.phase_contrast_microscope import DESCRIPTION as _PHASE_CONTRAST_MICROSCOPE
from bitlens.systems.phase_contrast_microscope import (
    PhaseContrastDesign,
    PhaseContrastMicroscope,
    phase_contrast_microscope,
    source_pattern,
    source_points,
)
from bitlens.systems.radio_interferometer import DESCRIPTION as _RADIO_INTERFEROMETER
from bitlens.systems.radio_interferometer import (
    InterferometerDesign,
    VisibilitySampling,
    radio_interferometer,
    station_layout,
    visibility_std_jy,
)
from bitlens.systems.satellite_imager import DESCRIPTION as _SATELLITE_IMAGER
from bitlens.systems.satellite_imager import SatelliteDesign, SatelliteImager, satellite_imager
from bitlens.systems.single_pixel_camera import DESCRIPTION as _SINGLE_PIXEL_CAMERA
from bitlens.systems.single_pixel_camera import SinglePixelCamera, SinglePixelDesign, single_pixel_camera
from bitlens.systems.x_ray_ct import ATTENUATION_PER_MM, TransmissionTomography, XRayDesign, x_ray_ct
from bitlens.systems.x_ray_ct import DESCRIPTION as _X_RAY_CT

__all__ = [
    "ATTENUATION_PER_MM",
    "CameraDesign",
    "CodedApertureSpectralImager",
    "ColorCamera",
    "ColorCameraDesign",
    "FaceCameraDesign",
    "FaceScenes",
    "FluorescenceDesign",
    "FluorescenceMicroscope",
    "FourierPtychography",
    "HolographyDesign",
    "ImagingSystem",
    "InfraredCamera",
    "InfraredDesign",
    "InlineHologram",
    "InterferometerDesign",
    "LenslessCamera",
    "LenslessDesign",
    "MRIDesign",
    "PhaseContrastDesign",
    "PhaseContrastMicroscope",
    "PtychographyDesign",
    "SatelliteDesign",
    "SatelliteImager",
    "SinglePixelCamera",
    "SinglePixelDesign",
    "SpectralImagerDesign",
    "SystemDescription",
    "Telescope",
    "TelescopeDesign",
    "TransmissionTomography",
    "VisibilitySampling",
    "XRayDesign",
    "camera",
    "coded_aperture_spectral_imager",
    "color_camera",
    "descriptions",
    "face_recognition_camera",
    "face_scenes",
    "fluorescence_microscope",
    "fourier_ptychography",
    "infrared_camera",
    "inline_holography",
    "kelvin_from_counts",
    "led_array",
    "lensless_camera",
    "mercury_cadmium_cutoff_um",
    "mri",
    "optical_telescope",
    "phase_contrast_microscope",
    "photodiode_efficiency",
    "radio_interferometer",
    "satellite_imager",
    "single_pixel_camera",
    "source_pattern",
    "source_points",
    "station_layout",
    "visibility_std_jy",
    "x_ray_ct",
]


def descriptions() -> tuple[SystemDescription, ...]:
    """What systems there are: name, designs, formula and reference of each, in alphabetical order."""
    return (
        _CAMERA,
        _CODED_APERTURE_SPECTRAL_IMAGER,
        _COLOR_CAMERA,
        _FACE_RECOGNITION_CAMERA,
        _FLUORESCENCE_MICROSCOPE,
        _FOURIER_PTYCHOGRAPHY,
        _INFRARED_CAMERA,
        _INLINE_HOLOGRAPHY,
        _LENSLESS_CAMERA,
        _MRI,
        _OPTICAL_TELESCOPE,
        _PHASE_CONTRAST_MICROSCOPE,
        _RADIO_INTERFEROMETER,
        _SATELLITE_IMAGER,
        _SINGLE_PIXEL_CAMERA,
        _X_RAY_CT,
    )
