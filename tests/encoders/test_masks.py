"""Masks: the values they promise, the gradient they promise, and what light does behind them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq
from torch import Tensor

from bitlens.encoders import optics
from bitlens.encoders.linear import channels_to_complex, complex_to_channels
from bitlens.encoders.masks import (
    AmplitudeMask,
    FourierMask,
    MaskTransmission,
    PhaseMask,
    annealed_mask,
    annealed_sharpness,
    binary_mask,
    bounded_transmission,
    conic_filter,
    gaussian_bands,
    gaussian_filter,
    mask_delay_waves,
    minimum_feature,
    phase_mask,
    project,
    transmission_parameter,
)
from bitlens.encoders.propagation import angular_spectrum


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("straight_through", ["clipped", "identity"])
def test_binary_mask_is_zero_or_one_to_the_bit(straight_through: str, dtype: torch.dtype) -> None:
    parameter = (1e3 * random(50, 40) ** 3).to(dtype)
    parameter[0, :3] = torch.tensor([0.0, 1e-30, -1e-30], dtype=dtype)
    mask = binary_mask(parameter, straight_through=straight_through)  # type: ignore[arg-type]
    assert mask.dtype == dtype
    assert torch.equal(mask, (parameter > 0).to(dtype))
    assert 0.3 < float(mask.mean()) < 0.7


def test_binary_mask_passes_the_gradient_straight_through() -> None:
    parameter = tensor(-1.5, -1.0, -0.2, 0.3, 1.0, 2.0).requires_grad_()
    upstream = tensor(1.0, -2.0, 3.0, -4.0, 5.0, 6.0)
    (clipped,) = torch.autograd.grad(binary_mask(parameter), parameter, upstream)
    assert clipped.tolist() == [0.0, -2.0, 3.0, -4.0, 5.0, 0.0]
    (identity,) = torch.autograd.grad(binary_mask(parameter, straight_through="identity"), parameter, upstream)
    assert torch.equal(identity, upstream)
    with pytest.raises(ValueError, match="straight_through: need one of"):
        binary_mask(parameter, straight_through="none")  # type: ignore[arg-type]


def test_binary_mask_can_be_learned() -> None:
    """Least squares against a binary target: the straight-through gradient finds every pixel."""
    target = (random(8, 8, seed=3) > 0).to(torch.float64)
    parameter = torch.full((8, 8), -0.1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (binary_mask(parameter) - target).square().sum().backward()
        optimizer.step()
    assert torch.equal(binary_mask(parameter), target)


def test_annealed_mask_becomes_binary() -> None:
    parameter = random(30, 30)
    assert (annealed_mask(parameter, sharpness=1e6) - binary_mask(parameter)).abs().max() < 1e-12
    grey = annealed_mask(parameter, sharpness=2.0)
    torch.testing.assert_close(grey, (1 + torch.tanh(parameter)) / 2, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(
        lambda parameter, sharpness: annealed_mask(parameter, sharpness=sharpness),
        (parameter[:3, :3].clone().requires_grad_(), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)),
    )


def test_annealing_is_geometric() -> None:
    schedule = [annealed_sharpness(step, n_steps=5, first=2.0, last=32.0) for step in range(7)]
    assert schedule == pytest.approx([2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0])
    with pytest.raises(ValueError, match="n_steps: need at least 2"):
        annealed_sharpness(0, n_steps=1)
    with pytest.raises(ValueError, match="last: need a positive number"):
        annealed_sharpness(0, n_steps=5, last=0.0)


def test_transmission_stays_within_its_bounds() -> None:
    parameter = 20 * random(1000)
    transmission = bounded_transmission(parameter, lowest=0.1, highest=0.8)
    assert float(transmission.min()) >= 0.1
    assert float(transmission.max()) <= 0.8
    inside = torch.linspace(0.11, 0.79, 50, dtype=torch.float64)
    back = transmission_parameter(inside, lowest=0.1, highest=0.8)
    torch.testing.assert_close(bounded_transmission(back, lowest=0.1, highest=0.8), inside, rtol=1e-12, atol=0)
    ends = bounded_transmission(transmission_parameter(tensor(0.0, 1.0)))
    assert ends.tolist() == pytest.approx([1e-6, 1 - 1e-6], abs=1e-12)
    assert torch.autograd.gradcheck(bounded_transmission, (random(5).requires_grad_(),))
    assert torch.autograd.gradcheck(transmission_parameter, (inside.requires_grad_(),))


def test_phase_mask_delays_by_its_glass() -> None:
    height = tensor(0.0, 0.55 / 0.46 / 4, 1.0)
    factor = phase_mask(height, refractive_index=1.46, wavelength_nm=550.0)
    assert complex(factor[0]) == 1
    assert complex(factor[1]) == pytest.approx(1j, abs=1e-12)
    assert complex(factor[2]) == pytest.approx(np.exp(2j * np.pi * 0.46 / 0.55), abs=1e-12)
    waves = mask_delay_waves(height, refractive_index=1.46, wavelength_nm=550.0, surrounding_index=1.33)
    assert waves.tolist() == pytest.approx((0.13 * height / 0.55).tolist())
    # Against glass of its own index it is not there.
    assert torch.equal(
        phase_mask(height, refractive_index=1.5, wavelength_nm=550.0, surrounding_index=1.5).real,
        torch.ones(3).double(),
    )
    inputs = [value.requires_grad_() for value in (height.clone(), *tensor(1.46, 0.55, 1.0))]

    def parts(height: Tensor, index: Tensor, wavelength: Tensor, surrounding: Tensor) -> Tensor:
        return phase_mask(height, refractive_index=index, wavelength_nm=1e3 * wavelength, surrounding_index=surrounding)

    assert torch.autograd.gradcheck(parts, [value.detach().requires_grad_() for value in inputs])


def beam(x: Tensor, waist_um: float) -> Tensor:
    return torch.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / waist_um**2)


def centroid(intensity: Tensor, x: Tensor) -> tuple[float, float]:
    total = intensity.sum()
    return float((intensity.sum(-1) * x).sum() / total), float((intensity.sum(-2) * x).sum() / total)


def test_prism_bends_light_towards_its_base() -> None:
    # Deflection (n - 1) times the wedge's slope, here 0.46 x 0.02 along the columns.
    x = (torch.arange(256, dtype=torch.float64) - 128) * 2.0
    height = (0.02 * (x + 300.0)).expand(256, 256)
    behind = beam(x, 60.0) * phase_mask(height, refractive_index=1.46, wavelength_nm=550.0)
    field = angular_spectrum(behind, distance_mm=8.0, wavelength_nm=550.0, sample_um=2.0)
    down, across = centroid(field.abs() ** 2, x)
    assert across == pytest.approx(8000 * 0.46 * 0.02, rel=1e-3)
    assert abs(down) < 1e-9


def test_a_lens_of_glass_focuses_and_so_does_its_pupil() -> None:
    # Parabolic relief, thick in the middle: f = R / (n - 1) = 10 mm.
    x = (torch.arange(256, dtype=torch.float64) - 128) * 2.0
    focal_um, radius_um = 10e3, 4.6e3
    height = 30.0 - (x[:, None] ** 2 + x[None, :] ** 2) / (2 * radius_um)
    behind = beam(x, 80.0) * phase_mask(height, refractive_index=1.46, wavelength_nm=550.0)
    distances = torch.linspace(7.0, 13.0, 13, dtype=torch.float64)
    field = angular_spectrum(behind, distance_mm=distances, wavelength_nm=550.0, sample_um=2.0)
    # A Gaussian beam is smallest short of f, at f / (1 + (f / z_R)^2).
    rayleigh_um = math.pi * 80.0**2 / 0.55
    smallest_mm = 1e-3 * focal_um / (1 + (focal_um / rayleigh_um) ** 2)
    peaks = (field.abs() ** 2).amax(dim=(-2, -1))
    fit = np.polyfit(distances[2:9].numpy(), 1 / peaks[2:9].numpy(), 2)
    assert -fit[1] / (2 * fit[0]) == pytest.approx(smallest_mm, rel=0.01)
    # In a camera of focal length F it brings the focus F^2 / f nearer: the sensor then stands beyond the focus.
    camera_um, f_number = 500.0, 5.0
    rim_um = camera_um / (2 * f_number)
    rim, middle = 30.0 - rim_um**2 / (2 * radius_um), 30.0
    delays = mask_delay_waves(tensor(rim, middle), refractive_index=1.46, wavelength_nm=550.0)
    defocus = optics.defocus_waves(camera_um**2 / focal_um, wavelength_nm=550.0, f_number=f_number)
    assert float(-(delays[0] - delays[1])) == pytest.approx(defocus, rel=1e-9)


def test_gaussian_bands() -> None:
    wavelength = torch.linspace(400, 700, 301, dtype=torch.float64)
    centers, widths, peaks = tensor(450, 550, 620), tensor(30.0, 50.0, 40.0), tensor(0.5, 0.3, 0.2)
    for band in range(3):
        alone = gaussian_bands(
            wavelength, center_nm=centers[band, None], width_nm=widths[band, None], peak=peaks[band, None]
        )
        assert float(alone.max()) == pytest.approx(float(peaks[band]), rel=1e-12)
        half = wavelength[alone >= float(peaks[band]) / 2 * (1 - 1e-12)]
        assert float(half.max() - half.min()) == float(widths[band])
        # Its integral is the peak times the width times sqrt(pi / (4 ln 2)).
        if band == 1:
            area = float(peaks[band] * widths[band]) * math.sqrt(math.pi / (4 * math.log(2)))
            assert float(alone.sum()) == pytest.approx(area, rel=1e-6)
    together = gaussian_bands(wavelength, center_nm=centers, width_nm=widths, peak=peaks)
    assert together.shape == (301,)
    assert float(together.max()) <= 1.0
    curves = [
        gaussian_bands(wavelength, center_nm=centers[b, None], width_nm=widths[b, None], peak=peaks[b, None])
        for b in range(3)
    ]
    torch.testing.assert_close(together, sum(curves, torch.zeros(301).double()), rtol=1e-12, atol=0)
    stacked = gaussian_bands(wavelength, center_nm=centers[:, None], width_nm=widths[:, None], peak=peaks[:, None])
    torch.testing.assert_close(stacked, torch.stack(curves), rtol=1e-12, atol=0)
    inputs = [value.requires_grad_() for value in (centers, widths, peaks)]
    assert torch.autograd.gradcheck(
        lambda center, width, peak: gaussian_bands(wavelength[::40], center_nm=center, width_nm=width, peak=peak),
        inputs,
    )


FILTERS = pytest.mark.parametrize(
    "smooth",
    [
        lambda density: conic_filter(density, radius_samples=4.5),
        lambda density: gaussian_filter(density, std_samples=1.5),
    ],
    ids=["conic", "gaussian"],
)


@FILTERS
def test_filters_keep_constants_bounds_and_sums(smooth) -> None:
    constant = torch.full((2, 20, 24), 0.3, dtype=torch.float64)
    torch.testing.assert_close(smooth(constant), constant, rtol=1e-12, atol=0)
    density = torch.rand(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    filtered = smooth(density)
    assert float(density.min()) <= float(filtered.min())
    assert float(filtered.max()) <= float(density.max())
    assert float(filtered.std()) < 0.5 * float(density.std())
    inside = torch.zeros(40, 40, dtype=torch.float64)
    inside[18:22, 17:23] = density[18:22, 17:23]
    torch.testing.assert_close(smooth(inside).sum(), inside.sum(), rtol=1e-10, atol=0)
    assert torch.autograd.gradcheck(smooth, (density[:9, :8].clone().requires_grad_(),), fast_mode=True)


def test_conic_filter_has_a_cone_as_its_response() -> None:
    point = torch.zeros(21, 21, dtype=torch.float64)
    point[10, 10] = 1.0
    response = conic_filter(point, radius_samples=5.0)
    cone = [[max(0.0, 1 - math.hypot(row - 10, column - 10) / 5) for column in range(21)] for row in range(21)]
    expected = torch.tensor(cone, dtype=torch.float64)
    torch.testing.assert_close(response, expected / expected.sum(), rtol=1e-10, atol=1e-14)
    # A radius below one sample leaves the density as it is.
    assert (conic_filter(point, radius_samples=0.7) - point).abs().max() < 1e-14


def test_projection() -> None:
    density = torch.linspace(0, 1, 101, dtype=torch.float64)
    for threshold in (0.3, 0.5):
        for sharpness in (1e-3, 2.0, 50.0):
            projected = project(density, sharpness=sharpness, threshold=threshold)
            assert float(projected[0]) == pytest.approx(0.0, abs=1e-12)
            assert float(projected[-1]) == pytest.approx(1.0, abs=1e-12)
            assert bool((projected.diff() >= 0).all())
        torch.testing.assert_close(project(density, sharpness=1e-3, threshold=threshold), density, rtol=1e-5, atol=1e-6)
        step = project(density, sharpness=1e5, threshold=threshold)
        away = (density - threshold).abs() > 1e-3
        assert torch.equal(step[away], (density > threshold).to(torch.float64)[away])
    inputs = (tensor(0.1, 0.45, 0.8), torch.tensor(4.0).double(), torch.tensor(0.4).double())
    assert torch.autograd.gradcheck(
        lambda density, sharpness, threshold: project(density, sharpness=sharpness, threshold=threshold),
        [value.requires_grad_() for value in inputs],
    )


def line_threshold() -> float:
    """Width of the strip, over the radius, that holds half the volume of a cone around its middle."""

    def profile(x: float) -> float:
        return 2 * quad(lambda y: 1 - math.hypot(x, y), 0, math.sqrt(max(0.0, 1 - x * x)))[0]

    return brentq(lambda width: 2 * quad(profile, 0, width / 2)[0] - math.pi / 6, 0.1, 1.9)


@pytest.mark.parametrize("of_holes", [False, True])
def test_small_features_disappear_and_large_ones_stay(of_holes: bool) -> None:
    radius = 20.0
    width = line_threshold() * radius
    assert width == pytest.approx(0.566 * radius, rel=1e-3)

    def survives(pattern: Tensor) -> bool:
        density = 1 - pattern if of_holes else pattern
        result = minimum_feature(density, radius_samples=radius, sharpness=1e4)
        changed = (1 - result if of_holes else result)[48, 48]
        assert min(float(changed), abs(1 - float(changed))) < 1e-6
        return bool(changed > 0.5)

    index = torch.arange(97, dtype=torch.float64) - 48
    across, apart = index.expand(97, 97), torch.hypot(index[:, None], index[None, :])
    # Lines of 11 and 13 samples around the threshold of 11.3; discs around half the radius.
    for thickness in (1, 5, 9, 11, 13, 17):
        assert survives((across.abs() < thickness / 2).to(torch.float64)) == (thickness > width)
    for disc in (2.0, 6.0, 9.3, 10.7, 14.0):
        assert survives((apart <= disc).to(torch.float64)) == (disc > radius / 2)


def test_minimum_feature_gradient() -> None:
    density = torch.rand(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda density: minimum_feature(density, radius_samples=2.5, sharpness=5.0), (density,)
    )


def test_mask_transmission_starts_where_it_is_told() -> None:
    start = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(MaskTransmission(start)(), start, rtol=1e-12, atol=1e-12)
    annealed = MaskTransmission(start, kind="annealed", sharpness=7.0, learn=True)
    torch.testing.assert_close(annealed(), start, rtol=1e-12, atol=1e-12)
    annealed.sharpness.fill_(7e9)
    torch.testing.assert_close(annealed(), (start > 0.5).to(torch.float64), rtol=0, atol=1e-9)
    binary = MaskTransmission((start > 0.4).numpy(), kind="binary", learn=True)
    assert torch.equal(binary(), (start > 0.4).to(torch.float64))
    binary().sum().backward()
    assert torch.equal(binary.parameter.grad, torch.ones(6, 5).double())
    assert [name for name, _ in MaskTransmission(start).named_parameters()] == []
    for wrong, message in (
        ({"transmission": 2 * start + 0.5}, "transmission: need values in"),
        ({"transmission": start, "kind": "grating"}, "kind: need one of"),
        ({"transmission": start, "sharpness": 0.0}, "sharpness: need a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            MaskTransmission(**wrong)


def test_amplitude_mask_absorbs() -> None:
    start = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scene = random(2, 3, 6, 5).abs()
    encoder = AmplitudeMask(MaskTransmission(start, learn=True))
    torch.testing.assert_close(encoder(scene), scene * start, rtol=1e-12, atol=1e-12)
    assert bool((encoder(scene) <= scene).all())
    assert [name for name, _ in encoder.named_parameters()] == ["mask.parameter"]


def test_phase_mask_encoder_is_the_factor() -> None:
    height = random(6, 5)
    field = torch.complex(random(2, 2, 6, 5), random(2, 2, 6, 5, seed=1))
    encoder = PhaseMask(height, refractive_index=(1.46, 1.45), wavelength_nm=(500, 600))
    expected = torch.stack(
        [phase_mask(height, refractive_index=n, wavelength_nm=w) for n, w in ((1.46, 500.0), (1.45, 600.0))]
    )
    after = channels_to_complex(encoder(complex_to_channels(field)))
    torch.testing.assert_close(after, field * expected, rtol=1e-12, atol=1e-12)
    back = channels_to_complex(encoder.A_adjoint(complex_to_channels(after)))
    torch.testing.assert_close(back, field)
    for wrong, message in (
        ({"height_um": height[0]}, "height_um: need shape"),
        ({"wavelength_nm": 0.0}, "wavelength_nm: need a positive number"),
        ({"learn": ["surface"]}, "learn: need names among"),
    ):
        with pytest.raises(ValueError, match=message):
            PhaseMask(**{"height_um": height, "refractive_index": 1.5, "wavelength_nm": 500.0, **wrong})


@pytest.mark.parametrize("shape", [(16, 20), (15, 9)])
def test_fourier_mask_selects_frequencies(shape: tuple[int, int]) -> None:
    rows, columns = shape
    y, x = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) / size for size in shape), indexing="ij")
    slow = torch.exp(2j * math.pi * (x - y))
    fast = torch.exp(2j * math.pi * (3 * x + 4 * y))
    distance = torch.hypot(
        (torch.arange(rows) - rows // 2).double()[:, None], (torch.arange(columns) - columns // 2).double()[None, :]
    )
    low_pass = FourierMask(MaskTransmission((distance < 3).double(), kind="binary"))
    after = channels_to_complex(low_pass(complex_to_channels((slow + 0.7 * fast)[None, None])))
    assert (after[0, 0] - slow).abs().max() < 1e-12
    one = torch.zeros(shape, dtype=torch.float64)
    one[rows // 2 + 4, columns // 2 + 3] = 1.0
    only = FourierMask(MaskTransmission(one, kind="binary"))
    after = channels_to_complex(only(complex_to_channels((slow + 0.7 * fast)[None, None])))
    assert (after[0, 0] - 0.7 * fast).abs().max() < 1e-12


def test_errors_of_filters() -> None:
    with pytest.raises(ValueError, match="radius_samples: need a positive number"):
        conic_filter(torch.zeros(3, 3), radius_samples=0.0)
    with pytest.raises(ValueError, match="std_samples: need a positive number"):
        gaussian_filter(torch.zeros(3, 3), std_samples=-1.0)


@pytest.mark.parametrize(
    ("make", "good", "bad"),
    [
        (lambda: AmplitudeMask(MaskTransmission(torch.rand(5, 6))), (2, 3, 5, 6), (2, 3, 6, 5)),
        (lambda: AmplitudeMask(MaskTransmission(torch.rand(3, 5, 6))), (2, 3, 5, 6), (2, 2, 5, 6)),
        (lambda: FourierMask(MaskTransmission(torch.rand(2, 5, 6))), (2, 4, 5, 6), (2, 2, 5, 6)),
        (
            lambda: PhaseMask(torch.rand(5, 6), refractive_index=(1.5, 1.4), wavelength_nm=500.0),
            (2, 4, 5, 6),
            (2, 2, 5, 6),
        ),
    ],
)
def test_masks_take_arrays_and_name_what_does_not_fit(make, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    encoder = make()
    scene = np.random.default_rng(0).random(good)
    assert torch.equal(encoder(scene), encoder(torch.from_numpy(scene)))
    assert torch.equal(encoder.A_adjoint(scene), encoder.A_adjoint(torch.from_numpy(scene)))
    with pytest.raises(ValueError, match=r"scene: need shape \(batch, .*, 5, 6\)|scene: need shape"):
        encoder(torch.ones(bad))
    with pytest.raises(ValueError, match="measured: need shape"):
        encoder.A_adjoint(torch.ones(bad))
    with pytest.raises(TypeError, match="scene: need float32 or float64 values, got uint8"):
        encoder(np.ones(good, dtype=np.uint8))


def test_maps_of_masks_are_checked() -> None:
    with pytest.raises(ValueError, match=r"mask: need a map \(row, column\) or \(channel, row, column\), got shape"):
        AmplitudeMask(MaskTransmission(torch.rand(5)))
    with pytest.raises(ValueError, match="transmission: need at least one value"):
        MaskTransmission(torch.rand(0, 3))
    with pytest.raises(ValueError, match="refractive_index, wavelength_nm: need as many of each"):
        PhaseMask(torch.rand(5, 6), refractive_index=(1.5, 1.4), wavelength_nm=(500.0, 550.0, 600.0))


def test_binary_masks_stay_where_their_gradient_passes() -> None:
    assert MaskTransmission(torch.rand(4, 4), kind="binary").parameter_domain == {"parameter": (-1.0, 1.0)}
    assert MaskTransmission(torch.rand(4, 4)).parameter_domain == {}
