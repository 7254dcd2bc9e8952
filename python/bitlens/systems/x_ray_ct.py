"""An X-ray computed tomograph: photons that pass an object, view after view, within one dose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, final, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bitlens.datasets.phantoms_ellipses import body_slices
from bitlens.encoders.detector import Values, as_planes, as_values, hold, within
from bitlens.encoders.tomography import FanProjection, ParallelProjection
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._checks import check_count, check_names, check_positive, scenes_and_shape
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

_LEARNED = ("photons_per_view", "angles_rad", "offset_mm")
XRayDesign = Literal["parallel", "fan", "sparse_view", "limited_angle"]

DESCRIPTION = SystemDescription(
    name="x_ray_ct",
    designs=get_args(XRayDesign),
    formula="z = N + n, N ~ Poisson(photons_view exp(-A x) + background), n ~ Normal(0, electronic_std^2)",
    reference="Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, ch. 3 and 4",
)

# Linear attenuation at 60 keV, 1 / mm: mass attenuation times density. Hubbell and Seltzer 2004, NISTIR 5632
# (doi:10.18434/T4D01F): water 0.2059 cm^2/g; ICRU-44 adipose 0.1974 x 0.95, soft tissue 0.2048 x 1.06, whole blood
# 0.2057 x 1.06, lung 0.2053 x 0.26 (inflated), cortical bone 0.3148 x 1.92 g/cm^3.
ATTENUATION_PER_MM: Mapping[str, float] = {
    "water": 0.02059,
    "fat": 0.01875,
    "soft_tissue": 0.02171,
    "blood": 0.02180,
    "lung": 0.00534,
    "bone": 0.06044,
}


@final
class TransmissionTomography(nn.Module):
    """mean[view, bin] = photons()[view] exp(-projection(scene)[view, bin]) + background_photons.

    `projection` is a `ParallelProjection` or a `FanProjection`, linear and with an adjoint; the mean is not linear.
    `photons()` are `photons_per_view` times what keeps their sum: to learn them shares one dose between the views.
    Shapes: scene (batch, channel, row, column) in 1 / mm; mean (batch, channel, view, bin), detected photons.

    Reference: Kak and Slaney, Principles of Computerized Tomographic Imaging, 1988, sec. 4.1.
    """

    parameter_domain: ClassVar[Mapping[str, tuple[float | None, float | None]]] = {"photons_per_view": (0.0, None)}

    photons_per_view: Tensor
    dose_photons: Tensor
    background_photons: Tensor
    source_to_detector_mm: Tensor

    def __init__(
        self,
        projection: ParallelProjection | FanProjection,
        *,
        photons_per_view: Values,
        background_photons: float = 0.0,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes the geometry and the photons of each view on an element of the detector with nothing before it.

        Args:
            photons_per_view: one number, or (view,).
            background_photons: scatter and dark signal of an element in a view.
            learn: "photons_per_view", or nothing.

        Raises:
            ValueError: a negative number, or another number of views.
        """
        super().__init__()
        self.projection = projection
        views = len(projection.angles_rad)
        photons = as_values("photons_per_view", photons_per_view, "a number or one per view", (0, 1)).double()
        if photons.ndim and len(photons) != views:
            raise ValueError(f"photons_per_view: need a number or {views}, one per view, got {len(photons)}")
        background = as_values("background_photons", background_photons, "a number", (0,)).double()
        self.register_buffer("background_photons", within("background_photons", background, 0.0))
        of_views = within("photons_per_view", photons, 0.0).expand(views).clone()
        self.register_buffer("dose_photons", of_views.sum())
        self.parameter_scale: Mapping[str, float] = {"photons_per_view": 0.3 * float(of_views.mean()) or 1.0}
        hold(self, {"photons_per_view": of_views}, learn)
        # From the source to the detector, over which photons on an element fall with the square.
        self.register_buffer("source_to_detector_mm", self._source_to_detector().detach().clone())

    def photons(self) -> Tensor:
        """Of each view on an element with nothing before it, (view,): their sum is the dose that was given.

        A fan whose learned distances grow apart spreads it: by the inverse square of source to detector.
        """
        total = self.photons_per_view.sum()
        # No dose has no shares: 0 of 1.
        shares = self.photons_per_view / torch.where(total > 0, total, 1.0)
        return self.dose_photons * shares * (self.source_to_detector_mm / self._source_to_detector()).square()

    def _source_to_detector(self) -> Tensor:
        """Distance, mm; 1 for parallel rays, whose photons do not spread."""
        if isinstance(self.projection, FanProjection):
            return self.projection.source_mm + self.projection.detector_mm
        return torch.ones((), dtype=torch.float64, device=self.photons_per_view.device)

    def forward(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photons (batch, channel, view, bin) of attenuations (batch, channel, row, column), 1 / mm."""
        thickness = self.projection.A(scene)
        passed = self.photons().to(thickness.dtype)[:, None] * torch.exp(-thickness)
        return passed + self.background_photons.to(thickness.dtype)

    def attenuation(self, measured: Tensor | np.ndarray) -> Tensor:
        """Line integrals log(photons of the view / (measured - background)), of at least half a photon passed."""
        measured = as_planes("measured", measured, rows=len(self.photons_per_view), columns=self.projection.bins)
        passed = (measured - self.background_photons.to(measured.dtype)).clamp(min=0.5)
        return torch.log(self.photons().to(measured.dtype)[:, None]) - torch.log(passed)


def x_ray_ct(
    design: XRayDesign = "parallel",
    *,
    shape: tuple[int, int] | None = None,
    pixel_mm: float = 6.25,
    views: int = 90,
    bins: int | None = None,
    photons: float = 1.8e6,
    background_photons: float = 0.0,
    electronic_std: float = 3.0,
    source_mm: float = 541.0,
    detector_mm: float = 408.0,
    n_scenes: int = 256,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """z = N + n, N ~ Poisson(photons_view exp(-A x) + background), n ~ Normal(0, electronic_std^2), in photons.

    "parallel": views over half a turn; "fan": over a turn, from a point source before a flat detector;
    "sparse_view": a quarter of the views; "limited_angle": over a third of a turn. All at one dose, learned or not.

    Args:
        photons: of the whole scan, on a detector element with nothing before it (20,000 in each of 90 views).
        shape, bins: default 64 x 64 pixels, and so many detector elements that the whole image lies within.
        electronic_std: read noise of an element in a view, photons.
        source_mm, detector_mm: of "fan", from the axis; defaults as in clinical scanners (949 mm in all).
        scenes: (n, 1, row, column), 1 / mm; default chests at 60 keV.
        learn: "photons_per_view", "angles_rad", "offset_mm"; for "fan" also "source_mm", "detector_mm".

    Reference: Kak and Slaney 1988, ch. 3 and 4; noise: Zeng et al. 2015, doi:10.1109/TNS.2015.2467219.
    """
    if design not in get_args(XRayDesign):
        raise ValueError(f"design: need one of {get_args(XRayDesign)}, got {design!r}")
    check_count("views", views)
    scenes, shape = scenes_and_shape(scenes, shape, n_scenes, default=(64, 64))
    pixel_mm, photons = check_positive("pixel_mm", pixel_mm), check_positive("photons", photons)
    if bins is not None:
        check_count("bins", bins)
    check_names(learn)
    known = (*_LEARNED, *(("source_mm", "detector_mm") if design == "fan" else ()))
    for name in learn:
        if name not in known:
            raise ValueError(f"learn: need names among {', '.join(known)}, got {name!r}")
    geometry = tuple(name for name in learn if name != "photons_per_view")
    count = max(1, views // 4) if design == "sparse_view" else views
    turn = {"fan": 2 * math.pi, "limited_angle": 2 * math.pi / 3}.get(design, math.pi)
    # Not along pixels or their diagonals, where the derivative in an angle jumps: the start is no fraction of a turn.
    angles = (torch.arange(count, dtype=torch.float64) + (3 - math.sqrt(5)) / 2) * (turn / count)
    radius = pixel_mm * math.hypot(*shape) / 2
    projection: ParallelProjection | FanProjection
    if design == "fan":
        if bins is None:
            bins = _fan_bins(radius, source_mm, source_mm + detector_mm, pixel_mm)
        projection = FanProjection(
            angles, shape, bins=bins, source_mm=source_mm, detector_mm=detector_mm, pixel_mm=pixel_mm, learn=geometry
        )
    else:
        if bins is None:
            bins = math.ceil(2 * radius / pixel_mm)
        projection = ParallelProjection(angles, shape, bins=bins, pixel_mm=pixel_mm, learn=geometry)
    encoder = TransmissionTomography(
        projection,
        photons_per_view=photons / count,
        background_photons=background_photons,
        learn=tuple(name for name in learn if name == "photons_per_view"),
    )
    if scenes is None:
        scenes = body_slices(
            n_scenes,
            shape,
            pixel_mm=pixel_mm,
            attenuation_per_mm=ATTENUATION_PER_MM,
            generator=torch.Generator().manual_seed(0),
        )
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=electronic_std), scenes)


def _fan_bins(radius: float, source: float, distance: float, pixel: float) -> int:
    """Elements, as wide as a pixel's shadow, of a flat detector that all rays through the circle of `radius` meet."""
    if source <= radius:
        raise ValueError(f"source_mm: need more than {radius:.6g}, the image's half diagonal, got {source}")
    reach = distance * radius / math.sqrt(source**2 - radius**2)
    return math.ceil(2 * reach / (pixel * distance / source))
