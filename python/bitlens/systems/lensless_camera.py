"""A lensless camera: a thin mask (lens, lenslets, diffuser or coded aperture) close to a bare sensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from bitlens import ops
from bitlens.datasets import scene_patches
from bitlens.encoders import LinearEncoder, angular_spectrum, gaussian_filter, integrate_pixels, phase_mask
from bitlens.encoders.convolution import adjoint_psf, never_below_zero
from bitlens.encoders.detector import Values, as_planes, as_values, hold, within
from bitlens.noise import PoissonGaussianNoise
from bitlens.systems._camera_scenes import as_sequence, check_relative_light
from bitlens.systems._checks import check_count, check_names, check_number, check_scenes, check_shape
from bitlens.systems.imaging_system import ImagingSystem, SystemDescription

LenslessDesign = Literal["lens", "lenslets", "diffuser", "coded_mask"]

DESCRIPTION = SystemDescription(
    name="lensless_camera",
    designs=get_args(LenslessDesign),
    formula="z = N + n, N ~ Poisson(photons sum_d PSF_d * scene_d), PSF_d = pixels(|propagate(mask wave_d)|^2)",
    reference="Antipa et al. 2018, DiffuserCam, doi:10.1364/OPTICA.5.000001; Asif et al. 2017, arXiv:1509.00116",
)


# Of the light that passes the mask, at most this share may leave the PSF's window. An aperture of a few pixels loses
# some per cent of what it diffracts at any useful distance.
_LARGEST_LOSS = 0.1


@final
class LenslessCamera(LinearEncoder):
    """mean = exposure_photons sum_d PSF_d * scene_d, PSF_d = pixels(|propagate(amplitude relief wave_d)|^2).

    The wave of a point at depth z is a paraxial sphere: it casts the mask's shadow 1 + distance / z times as large.
    One scene sample is what moves the shadow by one pixel, z / distance pixels wide, so that light per sample is the
    same at every depth; nothing hides anything. Light beyond the sensor is lost, and beyond the scene it is dark.

    Shapes: (batch, depth, row, column) -> (batch, 1, row, column); the mask maps (row, column), `oversampling` samples
    per pixel, in the middle of the PSF's window. A PSF's sum is the mask's mean of amplitude^2, its
    transmission. Differentiable in all five named numbers and maps.

    Reference: Antipa et al. 2018, doi:10.1364/OPTICA.5.000001.
    """

    height_um: Tensor
    amplitude: Tensor
    distance_mm: Tensor
    wavelength_nm: Tensor
    exposure_photons: Tensor

    def __init__(
        self,
        *,
        height_um: Values,
        amplitude: Values,
        distance_mm: float,
        pixel_um: float,
        oversampling: int,
        depths_mm: float | Sequence[float] = (math.inf,),
        wavelength_nm: float = 532.0,
        refractive_index: float = 1.5,
        exposure_photons: float = 1000.0,
        psf_pixels: tuple[int, int] | None = None,
        learn: Sequence[str] = (),
    ) -> None:
        """Takes maps (row, column) in a whole number of pixels, and numbers in the units their names state.

        Args:
            height_um: of the relief, of `refractive_index`. amplitude: share of the field that passes, 0 to 1.
            oversampling: mask samples per pixel's side, even, so that the axis falls between two and on a pixel.
            depths_mm: of the scene's planes from the mask, one or several; infinity for far away.
            exposure_photons: photo-electrons that a scene sample of 1 sends through the open mask.
            psf_pixels: window of the PSF, default twice the mask.
            learn: names of arguments to optimise, all of the five that are held as tensors.

        Raises:
            ValueError: a number out of range, maps that do not fit, or a depth whose wave the samples cannot hold.
        """
        super().__init__()
        values = {
            "height_um": as_values("height_um", height_um, "(row, column)", (2,)),
            "amplitude": within("amplitude", as_values("amplitude", amplitude, "(row, column)", (2,)), 0.0, 1.0),
            "distance_mm": _positive("distance_mm", distance_mm),
            "wavelength_nm": _positive("wavelength_nm", wavelength_nm),
            "exposure_photons": _positive("exposure_photons", exposure_photons),
        }
        size = tuple(values["height_um"].shape)
        if oversampling < 2 or oversampling % 2:
            raise ValueError(f"oversampling: need an even number, got {oversampling}")
        if tuple(values["amplitude"].shape) != size or any(n % oversampling for n in size):
            raise ValueError(
                f"height_um, amplitude: need one shape, of multiples of oversampling = {oversampling}, got {size} "
                f"and {tuple(values['amplitude'].shape)}"
            )
        self.pixel_um = float(_positive("pixel_um", pixel_um))
        self.oversampling = oversampling
        self.refractive_index = refractive_index
        self.psf_pixels = psf_pixels or (2 * size[0] // oversampling, 2 * size[1] // oversampling)
        if any(window * oversampling < n for window, n in zip(self.psf_pixels, size, strict=True)):
            raise ValueError(f"psf_pixels: need a window at least as large as the mask, got {self.psf_pixels}")
        self.depths_mm = as_sequence("depths_mm", depths_mm)
        _check_depths(self.depths_mm, 0.5 * max(size) * self.sample_um, self.sample_um, wavelength_nm)
        hold(self, values, learn)
        # Shorter waves than this turn by more than half a period between two samples of the relief.
        steps_um = (values["height_um"].diff(dim=dim).abs().amax() for dim in (0, 1) if size[dim] > 1)
        steepest_um = max((float(step) for step in steps_um), default=0.0)
        nearest_mm = min(self.depths_mm)
        coarse_nm = max(2e3 * abs(refractive_index - 1) * steepest_um, max(size) * self.sample_um**2 / nearest_mm)
        self._shortest_nm = min(max(coarse_nm, 1.0), wavelength_nm)
        self._most_photons = float(exposure_photons)
        self.parameter_scale: Mapping[str, float] = {
            "height_um": 1e-3 * wavelength_nm,
            "amplitude": 1.0,
            "distance_mm": float(distance_mm),
            "wavelength_nm": wavelength_nm,
            "exposure_photons": 0.3 * self._most_photons,
        }

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float | None, float | None]]:
        """What an optimiser may reach: no more photons, waves that the relief's samples hold, light within the window.

        The PSF is periodic in its window: light that diffraction and relief send past its edge would come back at the
        other. The distance ends where that is a tenth, with the mask as it is and to 4 %. The wavelength, which spreads
        light as the distance does, ends at as many times its value, and at half or twice, for which the index serves.
        """
        distance, wavelength = (float(value.detach()) for value in (self.distance_mm, self.wavelength_nm))
        room = self._room()
        return {
            "amplitude": (0.0, 1.0),
            "distance_mm": (min(1e-2, distance), room * distance),
            "wavelength_nm": (max(self._shortest_nm, 0.5 * wavelength), min(room, 2.0) * wavelength),
            "exposure_photons": (0.0, self._most_photons),
        }

    @torch.no_grad()
    def light_outside_window(self, distance_mm: float | None = None) -> float:
        """Share of what the mask passes that falls beyond the PSF's window: the most of all depths, by default here.

        From a propagation on twice the window: what the band limit lets pass goes at most a window's width aside, too
        little to come back, and what it cuts off goes further.
        """
        distance = self.distance_mm if distance_mm is None else distance_mm
        field = self._behind_mask().to(torch.complex64)
        rows, columns = field.shape[-2:]
        wide = angular_spectrum(
            _centred(field, (2 * rows, 2 * columns)),
            distance_mm=distance,
            wavelength_nm=self.wavelength_nm,
            sample_um=self.sample_um,
            pad=1,
        )
        top, left = rows // 2, columns // 2
        within = wide[..., top : top + rows, left : left + columns]
        passed = field.abs().square().sum(dim=(-2, -1))
        inside = within.abs().square().sum(dim=(-2, -1))
        return float((1 - inside / passed.clamp(min=1e-30)).max())

    def _room(self) -> float:
        """How many times as far the sensor may be, in steps of 4 %, at least once and at most 64 times."""
        distance, near, far = float(self.distance_mm.detach()), 0, 106
        while far - near > 1:
            middle = (near + far) // 2
            if self.light_outside_window(distance * 1.04**middle) <= _LARGEST_LOSS:
                near = middle
            else:
                far = middle
        return 1.04**near

    @property
    def sample_um(self) -> float:
        """Pitch of the mask maps, and of the field on the sensor."""
        return self.pixel_um / self.oversampling

    def psf(self) -> Tensor:
        """(depth, *psf_pixels), origin in the middle, float64: what a point on the axis at each depth leaves."""
        field = angular_spectrum(
            self._behind_mask(),
            distance_mm=self.distance_mm,
            wavelength_nm=self.wavelength_nm,
            sample_um=self.sample_um,
            pad=1,
        )
        share = (field.real**2 + field.imag**2) / self.height_um.numel()
        return integrate_pixels(_about_middle(share, self.oversampling), self.oversampling) * self.oversampling**2

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """Mean photo-electrons (batch, 1, row, column) of scenes (batch, depth, row, column)."""
        scene = as_planes("scene", scene, channels=len(self.depths_mm))
        psf = (self.exposure_photons * self.psf()).to(scene.dtype)[None]
        return never_below_zero(ops.psf_convolve_channels(scene, psf), scene, psf)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The correlation with the PSF of each depth, (batch, depth, row, column)."""
        measured = as_planes("measured", measured, channels=1)
        psf = (self.exposure_photons * self.psf()).to(measured.dtype)[:, None]
        return ops.psf_convolve_channels(measured, adjoint_psf(psf, "same"))

    def _behind_mask(self) -> Tensor:
        """The field of each depth's point on the axis, complex (depth, row, column), over the PSF's window."""
        relief = phase_mask(self.height_um, refractive_index=self.refractive_index, wavelength_nm=self.wavelength_nm)
        rows, columns = (n * self.oversampling for n in self.psf_pixels)
        return _centred(self.amplitude * relief, (rows, columns)) * self._waves(rows, columns)

    def _waves(self, rows: int, columns: int) -> Tensor:
        """exp(i pi r^2 / (wavelength z)) (depth, row, column) over the window, r from its middle."""
        like = self.wavelength_nm
        row, column = (self.sample_um * (torch.arange(n).to(like) - 0.5 * (n - 1)) for n in (rows, columns))
        inverse_um = torch.tensor([1e-3 / depth for depth in self.depths_mm]).to(like)[:, None, None]
        phase = (math.pi / (1e-3 * like)) * inverse_um * (row[:, None] ** 2 + column**2)
        return torch.complex(phase.cos(), phase.sin())


def lensless_camera(
    design: LenslessDesign = "diffuser",
    *,
    distance_mm: float | None = None,
    pixel_um: float = 26.0,
    wavelength_nm: float = 532.0,
    mask_pixels: tuple[int, int] | None = None,
    depths_mm: float | Sequence[float] = (math.inf,),
    n_lenslets: int = 12,
    bump_um: float = 80.0,
    feature_um: float = 52.0,
    photons: float = 1000.0,
    read_std: float = 1.5,
    shape: tuple[int, int] = (64, 64),
    n_scenes: int = 256,
    scenes: Tensor | np.ndarray | None = None,
    learn: tuple[str, ...] = (),
) -> ImagingSystem:
    """mean = photons sum_d PSF_d * scene_d: a mask of half the sensor's size, 8 mm before pixels of 26 um.

    "lens": one lens focused on infinity, of the mask's full aperture. "lenslets": `n_lenslets` of that focal length at
    random places. "diffuser": a smooth random relief with bumps of `bump_um` (standard deviation) that casts
    caustics, deflecting by 0.82 bump / distance (rms). "coded_mask": opaque squares of `feature_um`, 1 mm before it.

    Args:
        pixel_um: 6.5 um binned 4 x 4. depths_mm: of the scene's planes, from the mask, one or several.
        distance_mm: at which at most a tenth of the light leaves the PSF's window, twice the mask's size.
        photons: photo-electrons of a scene sample of 1 through the open mask; the coded one passes half of it, compared
            at equal exposure, not equal light.
        mask_pixels: rows and columns of the mask, in pixels; default half of `shape`.
        shape: rows and columns of the sensor and of the default scenes: bundled images, dark around, one per depth.
        learn: "height_um" (relief), "amplitude", "distance_mm", "wavelength_nm", "exposure_photons".

    Reference: Antipa et al. 2018, doi:10.1364/OPTICA.5.000001 (diffuser some mm before a sensor of 6.5 um pixels and
        1.5 electrons of read noise); Asif et al. 2017, FlatCam, arXiv:1509.00116 (coded mask close to the sensor).
    """
    if design not in get_args(LenslessDesign):
        raise ValueError(f"design: need one of {get_args(LenslessDesign)}, got {design!r}")
    shape, n_scenes = check_shape(shape), check_count("n_scenes", n_scenes)
    check_names(learn)
    depths_mm = as_sequence("depths_mm", depths_mm)
    if scenes is not None:
        check_relative_light(scenes)
        scenes = check_scenes(scenes, channels=len(depths_mm))
    distance = (1.0 if design == "coded_mask" else 8.0) if distance_mm is None else distance_mm
    lengths = {"distance_mm": distance, "pixel_um": pixel_um, "wavelength_nm": wavelength_nm, "photons": photons}
    for name, value in (lengths | {"bump_um": bump_um, "feature_um": feature_um}).items():
        _positive(name, value)
    n_lenslets = check_count("n_lenslets", n_lenslets)
    pixels = (max(shape[0] // 2, 1), max(shape[1] // 2, 1))
    pixels = pixels if mask_pixels is None else check_shape(mask_pixels, "mask_pixels")
    generator = torch.Generator().manual_seed(0)
    half_um = 0.5 * pixel_um * torch.tensor(pixels, dtype=torch.float64)
    places = torch.zeros(1, 2, dtype=torch.float64)
    if design == "lenslets":
        places = (2 * torch.rand(n_lenslets, 2, dtype=torch.float64, generator=generator) - 1) * half_um
    largest_um = _largest_sample_um(
        wavelength_nm=wavelength_nm,
        distance_mm=distance,
        widest_um={"coded_mask": 0.0, "diffuser": 4 * math.sqrt(2 / 3) * bump_um}.get(
            design, _widest_um(half_um, places)
        ),
        half_um=float(half_um.max()),
        nearest_mm=min(depths_mm, default=math.inf),
    )
    oversampling = 2 * max(1, math.ceil(0.5 * pixel_um / largest_um))
    size = (pixels[0] * oversampling, pixels[1] * oversampling)
    sample_um = pixel_um / oversampling
    height, amplitude = torch.zeros(size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)
    if design == "coded_mask":
        amplitude = binary_squares(size, max(round(feature_um / sample_um), 1), generator=generator)
    elif design == "diffuser":
        height = diffuser_relief(size, sample_um, bump_um=bump_um, focal_length_mm=distance, generator=generator)
    else:
        height = lenslet_relief(size, sample_um, places, focal_length_mm=distance)
    encoder = LenslessCamera(
        height_um=height,
        amplitude=amplitude,
        distance_mm=distance,
        pixel_um=pixel_um,
        oversampling=oversampling,
        depths_mm=depths_mm,
        wavelength_nm=wavelength_nm,
        exposure_photons=photons,
        learn=learn,
    )
    outside = encoder.light_outside_window()
    if outside > _LARGEST_LOSS:
        raise ValueError(
            f"distance_mm: need one from which at most {100 * _LARGEST_LOSS:g} % of the light leaves the PSF's window "
            f"of {encoder.psf_pixels} pixels, got {distance:g} with {100 * outside:.0f} %"
        )
    if scenes is None:
        n_depths = len(encoder.depths_mm)
        patches = scene_patches(n_scenes * n_depths, max(shape), generator=generator).scenes[
            ..., : shape[0], : shape[1]
        ]
        scenes = patches.reshape(n_scenes, n_depths, *shape)
    return ImagingSystem(encoder, PoissonGaussianNoise(read_std=read_std), scenes)


def lenslet_relief(
    size: tuple[int, int],
    sample_um: float,
    places_um: Tensor,
    *,
    focal_length_mm: float,
    refractive_index: float = 1.5,
) -> Tensor:
    """Height (row, column), um, <= 0, of lenslets side by side, each over what is nearest to it.

    -r^2 / (2 (n - 1) f), r from the nearest of `places_um` (lenslet, 2), rows and columns from the middle.
    """
    row, column = (sample_um * (torch.arange(n, dtype=torch.float64) - 0.5 * (n - 1)) for n in size)
    distance = (row[:, None] - places_um[:, 0, None, None]) ** 2 + (column - places_um[:, 1, None, None]) ** 2
    return -distance.amin(dim=0) / (2e3 * (refractive_index - 1) * focal_length_mm)


def diffuser_relief(
    size: tuple[int, int],
    sample_um: float,
    *,
    bump_um: float,
    focal_length_mm: float,
    refractive_index: float = 1.5,
    generator: torch.Generator,
) -> Tensor:
    """Height (row, column), um, of a smooth random relief: white noise smoothed by a Gaussian of deviation `bump_um`.

    The rms of its power along an axis, (n - 1) d^2 height / dx^2, is 1 / focal length: caustics are sharp about there,
    if bump^2 is above wavelength times focal length. The rms deflection is sqrt(2/3) bump / focal length, in radians.
    """
    std_samples = bump_um / sample_um
    edge = math.ceil(4 * std_samples)
    white = torch.randn(size[0] + 2 * edge, size[1] + 2 * edge, dtype=torch.float64, generator=generator)
    smooth = gaussian_filter(white, std_samples=std_samples)[edge : edge + size[0], edge : edge + size[1]]
    # Its covariance is a Gaussian of deviation sqrt(2) bump: the second derivative has sqrt(3) / (2 bump^2) times
    # the deviation of the height, which the filter leaves at 1 / (2 sqrt(pi) std_samples).
    height_um = 2 * bump_um**2 / (math.sqrt(3) * 1e3 * (refractive_index - 1) * focal_length_mm)
    return smooth * (height_um * 2 * math.sqrt(math.pi) * std_samples)


def binary_squares(size: tuple[int, int], feature_samples: int, *, generator: torch.Generator) -> Tensor:
    """Amplitude (row, column), 0 or 1 with even chances, constant over squares of `feature_samples`."""
    count = [-(-n // feature_samples) for n in size]
    open_ = (torch.rand(count[0], count[1], dtype=torch.float64, generator=generator) < 0.5).to(torch.float64)
    fine = open_.repeat_interleave(feature_samples, dim=0).repeat_interleave(feature_samples, dim=1)
    return fine[: size[0], : size[1]]


def _positive(name: str, value: float) -> Tensor:
    check_number(name, value)
    number = as_values(name, value, "a number", (0,))
    if not float(number) > 0:
        raise ValueError(f"{name}: need a positive number, got {value}")
    return number


def _check_depths(depths_mm: tuple[float, ...], half_um: float, sample_um: float, wavelength_nm: float) -> None:
    if not depths_mm:
        raise ValueError("depths_mm: need at least one, got none")
    nearest_mm = 2e-3 * half_um * sample_um / (1e-3 * wavelength_nm)
    for depth in depths_mm:
        if not depth >= nearest_mm:
            raise ValueError(
                f"depths_mm: need at least {nearest_mm:.3g} mm, where two samples of {sample_um:.3g} um still hold a "
                f"wave at the mask's edge, got {depth}"
            )


def _largest_sample_um(
    *, wavelength_nm: float, distance_mm: float, widest_um: float, half_um: float, nearest_mm: float
) -> float:
    """What holds a relief that sends light `widest_um` aside at its distance, and four samples of an edge's fringes.

    To the relief's slope comes that of the wave of the nearest point at the mask's edge.
    """
    if not nearest_mm > 0:
        raise ValueError(f"depths_mm: need positive numbers, got {nearest_mm}")
    # Micrometres per millimetre: with the wavelength in nanometres the units cancel.
    slope = widest_um / distance_mm + half_um / nearest_mm
    fringes_um = 0.25 * math.sqrt(wavelength_nm * distance_mm)
    return min(fringes_um, 0.5 * wavelength_nm / slope) if slope else fringes_um


def _widest_um(half_um: Tensor, places_um: Tensor) -> float:
    """How far along rows or columns a point of the mask lies at most from its lenslet, on a grid of 33 x 33 points."""
    row, column = (half * torch.linspace(-1, 1, 33, dtype=torch.float64) for half in half_um)
    along, across = torch.broadcast_tensors(
        (row[:, None] - places_um[:, 0, None, None]).abs(), (column - places_um[:, 1, None, None]).abs()
    )
    nearest = torch.hypot(along, across).argmin(dim=0, keepdim=True)
    return float(torch.maximum(along, across).gather(0, nearest).max())


def _centred(field: Tensor, window: tuple[int, int]) -> Tensor:
    """`field` with zeros around it, as many on either side."""
    before = [(size - n) // 2 for size, n in zip(window, field.shape[-2:], strict=True)]
    return pad(field, (before[1], before[1], before[0], before[0]))


def _about_middle(values: Tensor, oversampling: int) -> Tensor:
    """Moved by half a pixel where the window has an even number of pixels: the axis falls onto a pixel's middle."""
    shifts = [oversampling // 2 if (n // oversampling) % 2 == 0 else 0 for n in values.shape[-2:]]
    return values.roll(shifts, dims=(-2, -1)) if any(shifts) else values
