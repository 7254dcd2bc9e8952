"""Propagation against a Rayleigh-Sommerfeld integral, Gaussian beams, plane waves and self-images."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.encoders import propagation
from bitlens.encoders.linear import channels_to_complex, complex_to_channels
from bitlens.encoders.propagation import (
    FreeSpace,
    angular_spectrum,
    angular_spectrum_transfer,
    fresnel,
    fresnel_transfer,
)

WAVELENGTH_NM = 632.8
MODELS = pytest.mark.parametrize("propagate", [angular_spectrum, fresnel], ids=lambda function: function.__name__)


def positions_um(size: int, sample_um: float) -> Tensor:
    return (torch.arange(size, dtype=torch.float64) - size // 2) * sample_um


def random_field(*shape: int, dtype: torch.dtype = torch.complex128, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed)).to(dtype)


def smooth_field(size: int, sample_um: float, width_um: float) -> Tensor:
    """A structured field of compact support in space and, to 1e-9, in frequency."""
    x = positions_um(size, sample_um)
    envelope = torch.exp(-((x / width_um) ** 2))
    structure = 1 + 0.5 * torch.cos(0.05 * x[:, None]) + 0.3j * torch.sin(0.08 * x[None, :] + 0.03 * x[:, None])
    return envelope[:, None] * envelope[None, :] * structure


def gaussian_beam(x_um: Tensor, y_um: Tensor, z_um: float, waist_um: float, wavelength_um: float) -> Tensor:
    """w0/w exp(-r^2/w^2 + i k r^2/(2R) - i gouy) = exp(-r^2 / (w0^2 q)) / q, q = 1 + i z / z_R."""
    q = 1 + 1j * z_um * wavelength_um / (math.pi * waist_um**2)
    radius_squared = x_um[:, None] ** 2 + y_um[None, :] ** 2
    return torch.exp(-radius_squared / (waist_um**2 * q)) / q


def rayleigh_sommerfeld(
    points_um: np.ndarray,
    half_width_um: float,
    z_um: float,
    wavelength_um: float,
    opening: Callable[[Tensor], Tensor] | None = None,
) -> np.ndarray:
    """(1/2 pi) integral of z/r^2 (1/r - i k) exp(i k (r - z)) over a square, by Gauss and Legendre's rule."""
    node, weight = np.polynomial.legendre.leggauss(400)
    if opening is not None:
        weight = weight * opening(torch.from_numpy(half_width_um * node)).numpy()
    wavenumber, values = 2 * np.pi / wavelength_um, []
    for row, column in points_um:
        across = (row - half_width_um * node)[:, None] ** 2 + (column - half_width_um * node)[None, :] ** 2
        r = np.sqrt(across + z_um**2)
        kernel = z_um / r**2 * (1 / r - 1j * wavenumber) * np.exp(1j * wavenumber * across / (r + z_um))
        values.append(half_width_um**2 * (weight @ kernel @ weight) / (2 * np.pi))
    return np.array(values)


@pytest.mark.parametrize(
    ("pad", "edge_um", "bar"), [(None, 0.0, 1e-3), (2, 2.0, 3e-4)], ids=["default", "soft-edge-pad-2"]
)
def test_square_aperture_against_the_rayleigh_sommerfeld_integral(pad: int | None, edge_um: float, bar: float) -> None:
    # The ripples of where the band ends leave 0.005 of the peak at pad 2 and, with the aperture's samples, 0.0006 at 3.
    # The soft edge has faded to 0.04 where the band of pad 2 ends, at 512 um / (2 wavelength z).
    sample_um, half_width_um, z_um = 0.5, 64.0, 2000.0
    x = (torch.arange(512, dtype=torch.float64) - 255.5) * sample_um

    def opening(x: Tensor) -> Tensor:
        if edge_um == 0:
            return (x.abs() < half_width_um).to(torch.float64)
        return torch.special.ndtr((half_width_um - x.abs()) / edge_um)

    padding = {} if pad is None else {"pad": pad}
    field = angular_spectrum(
        opening(x)[:, None] * opening(x),
        distance_mm=z_um / 1e3,
        wavelength_nm=WAVELENGTH_NM,
        sample_um=sample_um,
        **padding,
    ).numpy()
    generator = np.random.default_rng(0)
    index = np.concatenate([generator.integers(0, 512, (15, 2)), generator.integers(110, 402, (30, 2)), [[255, 255]]])
    reach_um = half_width_um + 6 * edge_um
    truth = rayleigh_sommerfeld(x.numpy()[index], reach_um, z_um, WAVELENGTH_NM / 1e3, opening if edge_um else None)
    assert np.abs(field[index[:, 0], index[:, 1]] - truth).max() < bar * np.abs(field).max()


@pytest.mark.parametrize("distance_mm", [3.0, -3.0, 12.0])
def test_gaussian_beam_by_fresnel(distance_mm: float) -> None:
    x = positions_um(256, 2.0)
    settings = {"distance_mm": distance_mm, "wavelength_nm": WAVELENGTH_NM, "sample_um": 2.0}
    before = gaussian_beam(x, x, 0.0, 50.0, WAVELENGTH_NM / 1e3)
    after = gaussian_beam(x, x, 1e3 * distance_mm, 50.0, WAVELENGTH_NM / 1e3)
    assert (fresnel(before, **settings) - after).abs().max() < 1e-11
    # The paraxial beam is off Maxwell's by k z s^2 / 8 at s = (wavelength / (pi waist))^2, twice that at 1 / e^2.
    assert (angular_spectrum(before, **settings) - after).abs().max() < 5e-6


def test_plane_waves_gain_the_phase_of_their_direction() -> None:
    # With pad 1 the field is periodic: a wave on the frequency grid stays itself, times its transfer.
    size, sample_um, z_um, wavelength_um = 64, 1.0, 40.0, 0.6
    frequency = np.array([5, -9]) / (size * sample_um)
    x = positions_um(size, sample_um)
    wave = torch.exp(2j * math.pi * (frequency[0] * x[:, None] + frequency[1] * x[None, :]))
    after = angular_spectrum(wave, distance_mm=z_um / 1e3, wavelength_nm=600.0, sample_um=sample_um, pad=1)
    cosine = math.sqrt(1 - wavelength_um**2 * (frequency**2).sum())
    expected = wave * np.exp(2j * math.pi / wavelength_um * z_um * (cosine - 1))
    assert (after - expected).abs().max() < 1e-11


@pytest.mark.parametrize("distance_um", [0.7, -0.7])
def test_evanescent_waves_decay_for_either_sign(distance_um: float) -> None:
    size, sample_um, wavelength_um = 32, 0.1, 0.5
    frequency = 12 / (size * sample_um)
    x = positions_um(size, sample_um)
    wave = torch.exp(2j * math.pi * frequency * x).expand(size, size)
    after = angular_spectrum(wave, distance_mm=distance_um / 1e3, wavelength_nm=500.0, sample_um=sample_um, pad=1)
    wavenumber = 2 * math.pi / wavelength_um
    decay = math.exp(-wavenumber * abs(distance_um) * math.sqrt((wavelength_um * frequency) ** 2 - 1))
    assert 1e-8 < decay < 1e-6
    expected = decay * wave * np.exp(-1j * wavenumber * distance_um)
    assert (after - expected).abs().max() < 1e-8 * decay


@pytest.mark.parametrize("distance_mm", [-1e3, -1.0, -1e-3, 0.0, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("band_limit", [False, True])
def test_the_transfer_never_amplifies(distance_mm: float, band_limit: bool) -> None:
    # The grid holds s = 1 exactly, s just off it, and s up to 12.5.
    settings = {"distance_mm": distance_mm, "wavelength_nm": 500.0, "sample_um": 0.1, "band_limit": band_limit}
    for transfer in (angular_spectrum_transfer((40, 60), **settings), fresnel_transfer((40, 60), **settings)):
        assert bool(transfer.isfinite().all())
        assert float(transfer.abs().max()) <= 1 + 1e-15
        assert transfer[0, 0] == 1


@MODELS
@pytest.mark.parametrize("pad", [1, 1.5, 2])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_no_distance_is_the_identity(propagate, pad: float, dtype: torch.dtype) -> None:
    # 0.1 um at 500 nm: most of the field's frequencies are evanescent.
    field = random_field(2, 17, 24, dtype=dtype)
    same = propagate(field, distance_mm=0.0, wavelength_nm=500.0, sample_um=0.1, pad=pad)
    assert same.dtype == dtype
    assert (same - field).abs().max() < 50 * torch.finfo(dtype).eps


@MODELS
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("distance_mm", [0.5, 5.0, -10.0])
def test_there_and_back(propagate, dtype: torch.dtype, distance_mm: float) -> None:
    field = smooth_field(320, 3.0, 70.0).to(dtype)
    settings = {"wavelength_nm": WAVELENGTH_NM, "sample_um": 3.0}
    there = propagate(field, distance_mm=distance_mm, **settings)
    back = propagate(there, distance_mm=-distance_mm, **settings)
    assert (there - field).abs().max() > 0.01
    assert (back - field).abs().max() < (1e-5 if dtype == torch.complex64 else 1e-7)


@MODELS
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_energy_of_propagating_fields_is_conserved(propagate, dtype: torch.dtype) -> None:
    field = smooth_field(320, 3.0, 70.0).to(dtype)
    energy = (field.abs().double() ** 2).sum()
    for distance_mm in (1.0, -10.0):
        after = propagate(field, distance_mm=distance_mm, wavelength_nm=WAVELENGTH_NM, sample_um=3.0)
        tolerance = 1e-6 if dtype == torch.complex64 else 1e-12
        assert float((after.abs().double() ** 2).sum() / energy) == pytest.approx(1.0, abs=tolerance)


def test_energy_without_a_band_limit_is_conserved_to_rounding() -> None:
    field = random_field(3, 40, 50)
    after = angular_spectrum(field, distance_mm=7.0, wavelength_nm=500.0, sample_um=1.0, pad=1, band_limit=False)
    torch.testing.assert_close(after.abs().square().sum(), field.abs().square().sum(), rtol=1e-13, atol=0)


def test_two_steps_are_one() -> None:
    field = smooth_field(320, 3.0, 70.0)
    settings = {"wavelength_nm": WAVELENGTH_NM, "sample_um": 3.0}
    steps = angular_spectrum(angular_spectrum(field, distance_mm=2.0, **settings), distance_mm=3.5, **settings)
    assert (steps - angular_spectrum(field, distance_mm=5.5, **settings)).abs().max() < 1e-7


@pytest.mark.parametrize("sample_um", [5.0, 3.45, 1.0])
def test_single_precision_keeps_the_phase_at_one_metre(sample_um: float) -> None:
    # A transfer built in float32 is 0.01 to 0.3 rad off here.
    field = random_field(64, 64)
    settings = {"distance_mm": 1e3, "wavelength_nm": WAVELENGTH_NM, "sample_um": sample_um, "band_limit": False}
    exact = angular_spectrum(field, **settings)
    single = angular_spectrum(field.to(torch.complex64), **settings)
    assert (single - exact).abs().max() < 2e-6 * exact.abs().max()


def test_transfer_phase_against_extended_precision() -> None:
    mpmath = pytest.importorskip("mpmath")
    transfer = angular_spectrum_transfer(
        (32, 32), distance_mm=1e3, wavelength_nm=WAVELENGTH_NM, sample_um=1.0, band_limit=False
    )
    with mpmath.workdps(40):
        wavelength = mpmath.mpf(WAVELENGTH_NM) / 1000
        for row, column in ((0, 1), (3, 5), (16, 16), (0, 16)):
            s = wavelength**2 * (mpmath.mpf(row) ** 2 + mpmath.mpf(column) ** 2) / 1024
            phase = 2 * mpmath.pi / wavelength * 1_000_000 * (mpmath.sqrt(1 - s) - 1)
            expected = complex(mpmath.expj(phase))
            assert abs(complex(transfer[row, column]) - expected) < 2e-8


def test_band_limit_is_that_of_matsushima_and_shimobaba() -> None:
    size, sample_um, z_um, wavelength_um = 128, 0.25, 40.0, 0.5
    transfer = angular_spectrum_transfer((size, size), distance_mm=0.04, wavelength_nm=500.0, sample_um=sample_um)
    limit = 1 / (wavelength_um * math.sqrt((2 * z_um / (size * sample_um)) ** 2 + 1))
    frequency = np.abs(np.fft.fftfreq(size, sample_um))
    inside = (frequency[:, None] <= limit) & (frequency[None, :] <= limit)
    assert 0.05 < inside.mean() < 0.95
    assert np.array_equal(transfer.abs().numpy() > 0.5, inside)


@MODELS
@pytest.mark.parametrize("shift_um", [(60.0, 0.0), (-45.0, 30.0), (600.0, -500.0)])
@pytest.mark.parametrize("z_mm", [4.0, -4.0])
def test_a_shifted_window_sees_the_same_field(propagate, shift_um: tuple[float, float], z_mm: float) -> None:
    # A narrow beam under a tilt that leads it to the shifted window: the truth is the beam itself.
    sample_um = 1.0
    x = positions_um(160, sample_um)
    wavelength_um = WAVELENGTH_NM / 1e3
    direction = [value / math.copysign(math.hypot(1e3 * z_mm, *shift_um), z_mm) for value in shift_um]
    carrier = torch.exp(
        2j * math.pi / wavelength_um * (direction[0] * x[:, None] + direction[1] * x[None, :])
    ) * gaussian_beam(x, x, 0.0, 20.0, wavelength_um)
    settings = {"distance_mm": z_mm, "wavelength_nm": WAVELENGTH_NM, "sample_um": sample_um}
    shifted = propagate(carrier, shift_um=shift_um, **settings)
    wide = propagate(torch.nn.functional.pad(carrier, (700, 700, 700, 700)), pad=1, **settings)
    rows, columns = (700 + int(value) for value in shift_um)
    truth = wide[rows : rows + 160, columns : columns + 160]
    assert shifted.abs().max() > 0.3
    assert (shifted - truth).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(8, 13), (9, 6)])
@pytest.mark.parametrize("make", [angular_spectrum_transfer, fresnel_transfer])
def test_transfer_of_every_frequency(make, shape: tuple[int, int]) -> None:
    """Every entry against its own frequency, by complex arithmetic; a shift of zero in a tensor changes nothing."""
    distance_um, wavelength_um, sample_um = -3.0, 0.5, 0.4
    settings = {"distance_mm": distance_um / 1e3, "wavelength_nm": 500.0, "sample_um": sample_um, "band_limit": False}
    row, column = np.meshgrid(*(np.fft.fftfreq(size, sample_um) for size in shape), indexing="ij")
    s = wavelength_um**2 * (row**2 + column**2)
    wave = 2 * np.pi / wavelength_um
    if make is fresnel_transfer:
        expected = np.exp(-0.5j * wave * distance_um * s)
    else:
        root = np.sqrt((s - 1).astype(complex))
        expected = np.where(
            s > 1,
            np.exp(-wave * abs(distance_um) * root.real - 1j * wave * distance_um),
            np.exp(1j * wave * distance_um * (root.imag - 1)),
        )
    assert np.abs(make(shape, **settings).numpy() - expected).max() < 1e-12
    zero = torch.zeros((), dtype=torch.float64)
    assert np.abs(make(shape, shift_um=(zero, zero), **settings).numpy() - expected).max() < 1e-12
    ramp = np.exp(2j * np.pi * (0.3 * row - 0.7 * column))
    assert np.abs(make(shape, shift_um=(0.3, -0.7), **settings).numpy() - ramp * expected).max() < 1e-12


def test_grating_images_itself_at_the_talbot_distance() -> None:
    period_um, sample_um = 16.0, 1.0
    x = positions_um(64, sample_um)
    grating = ((x % period_um) < 5).to(torch.float64).expand(64, 64)
    settings = {"wavelength_nm": 500.0, "sample_um": sample_um, "pad": 1, "band_limit": False}
    image = fresnel(grating, distance_mm=2e-3 * period_um**2 / 0.5, **settings)
    assert (image - grating).abs().max() < 1e-10
    halfway = fresnel(grating, distance_mm=1e-3 * period_um**2 / 0.5, **settings)
    assert (halfway - grating.roll(8, -1)).abs().max() < 1e-10


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


@MODELS
@pytest.mark.parametrize("distance_mm", [0.05, -0.05])
def test_gradients(propagate, distance_mm: float) -> None:
    field = random_field(6, 7).requires_grad_()

    def image(field: Tensor, distance: Tensor, wavelength: Tensor, sample: Tensor, shift: Tensor) -> Tensor:
        # Steps are relative: one of 1e-6 nm would drown in rounding.
        return propagate(
            field,
            distance_mm=distance_mm * distance,
            wavelength_nm=500.0 * wavelength,
            sample_um=1.3 * sample,
            shift_um=(shift, 2.0),
        )

    inputs = (field, *numbers(1.0, 1.0, 1.0, 0.5))
    assert torch.autograd.gradcheck(image, inputs, eps=1e-7, atol=1e-5, rtol=1e-5)


def test_gradients_among_evanescent_waves() -> None:
    # The grid of 0.25 um holds s = 1 exactly, where the root has no slope.
    field = random_field(8, 8)
    inputs = numbers(3e-4, 500.0)

    def image(distance: Tensor, wavelength: Tensor) -> Tensor:
        return angular_spectrum(field, distance_mm=distance, wavelength_nm=wavelength, sample_um=0.15, pad=1)

    assert torch.autograd.gradcheck(image, inputs, eps=1e-7, atol=1e-4, rtol=1e-4)
    distance, wavelength = numbers(3e-4, 500.0)
    on_the_edge = angular_spectrum(field, distance_mm=distance, wavelength_nm=wavelength, sample_um=0.25, pad=1)
    for gradient in torch.autograd.grad(on_the_edge.abs().square().sum(), (distance, wavelength)):
        assert bool(gradient.isfinite())


def test_distance_derivative_is_the_helmholtz_generator() -> None:
    # dU/dz = ifft2(i k (sqrt(1 - s) - 1) fft2(U)).
    field = random_field(16, 16)
    size_um, wavelength_um = 1.0, 0.5
    frequency = torch.fft.fftfreq(16, size_um, dtype=torch.float64)
    s = wavelength_um**2 * (frequency[:, None] ** 2 + frequency[None, :] ** 2)
    settings = {"wavelength_nm": 500.0, "sample_um": size_um, "pad": 1, "band_limit": False}

    def after(distance_mm: Tensor) -> Tensor:
        return torch.view_as_real(angular_spectrum(field, distance_mm=distance_mm, **settings))

    (at,) = numbers(0.02)
    jacobian = torch.autograd.functional.jacobian(after, at)
    generator = 2j * math.pi / wavelength_um * ((1 - s).sqrt() - 1) * 1e3
    expected = torch.fft.ifft2(generator * torch.fft.fft2(torch.view_as_complex(after(at.detach()))))
    torch.testing.assert_close(torch.view_as_complex(jacobian), expected, rtol=1e-9, atol=1e-9)


def test_leading_axes_broadcast() -> None:
    field = random_field(2, 1, 12, 10)
    distances = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
    together = angular_spectrum(field, distance_mm=distances, wavelength_nm=500.0, sample_um=1.0)
    assert together.shape == (2, 3, 12, 10)
    for index, distance in enumerate(distances):
        alone = angular_spectrum(field[:, 0], distance_mm=float(distance), wavelength_nm=500.0, sample_um=1.0)
        torch.testing.assert_close(together[:, index], alone, rtol=1e-12, atol=1e-12)
    assert angular_spectrum(field[:0], distance_mm=0.1, wavelength_nm=500.0, sample_um=1.0).shape == (0, 1, 12, 10)
    array = angular_spectrum(field.numpy(), distance_mm=0.1, wavelength_nm=500.0, sample_um=1.0)
    assert torch.equal(array, angular_spectrum(field, distance_mm=0.1, wavelength_nm=500.0, sample_um=1.0))


def test_numbers_follow_a_tensor_to_its_device() -> None:
    distance = torch.zeros(2, dtype=torch.float64, device="meta")
    transfer = angular_spectrum_transfer((4, 5), distance_mm=distance, wavelength_nm=500.0, sample_um=1.0)
    assert transfer.device.type == "meta"
    assert transfer.shape == (2, 4, 5)


def test_free_space_is_the_function_on_pairs_of_channels() -> None:
    fields = random_field(2, 3, 12, 16)
    encoder = FreeSpace(distance_mm=(0.1, 0.2, -0.3), wavelength_nm=(450, 550, 650), sample_um=1.5, learn=["sample_um"])
    expected = angular_spectrum(
        fields,
        distance_mm=torch.tensor([0.1, 0.2, -0.3]),
        wavelength_nm=torch.tensor([450.0, 550.0, 650.0]),
        sample_um=1.5,
    )
    measured = encoder(complex_to_channels(fields))
    torch.testing.assert_close(channels_to_complex(measured), expected, rtol=1e-6, atol=1e-6)
    assert [name for name, _ in encoder.named_parameters()] == ["sample_um"]
    paraxial = FreeSpace(distance_mm=0.1, wavelength_nm=500, sample_um=1.5, model="fresnel", pad=1)
    expected = fresnel(fields, distance_mm=0.1, wavelength_nm=500.0, sample_um=1.5, pad=1)
    torch.testing.assert_close(channels_to_complex(paraxial(complex_to_channels(fields))), expected)
    assert "model='fresnel'" in repr(paraxial)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Grows with every transfer function that is worked out."""
    built: list[tuple[int, int]] = []
    build = propagation._transfer

    def transfer(model, shape, *others):
        built.append(shape)
        return build(model, shape, *others)

    monkeypatch.setattr(propagation, "_transfer", transfer)
    return built


SPACE = {"distance_mm": (0.1, -0.2), "wavelength_nm": 550.0, "sample_um": 1.5}


@pytest.mark.parametrize("shift_um", [(0.0, 0.0), (3.0, -1.0)])
def test_a_kept_transfer_changes_no_bit(monkeypatch: pytest.MonkeyPatch, shift_um: tuple[float, float]) -> None:
    channels = complex_to_channels(random_field(2, 2, 12, 16))
    encoder = FreeSpace(**SPACE, shift_um=shift_um)
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    built = counted(monkeypatch)
    first, back = encoder(channels), encoder.A_adjoint(channels)
    for _ in range(3):
        assert torch.equal(encoder(channels), first)
        assert torch.equal(encoder.A_adjoint(channels), back)
    assert built == [(36, 48)]
    assert torch.equal(FreeSpace(**SPACE, shift_um=shift_um, learn=["distance_mm", "shift_um"])(channels), first)
    assert set(vars(encoder)) == set(vars(FreeSpace(**SPACE, shift_um=shift_um)))
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_a_transfer_is_kept_only_while_it_is_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    channels = complex_to_channels(random_field(2, 2, 12, 16))
    encoder = FreeSpace(**SPACE)
    built = counted(monkeypatch)

    def check(expected: int, given: Tensor = channels) -> None:
        before, result = len(built), encoder(given)
        assert len(built) - before == expected
        setting = {name: getattr(encoder, name) for name in SPACE}
        shift = tuple(encoder.shift_um)
        fields = angular_spectrum(channels_to_complex(given), **setting, shift_um=shift)
        torch.testing.assert_close(result, complex_to_channels(fields), rtol=0, atol=0)

    check(1)
    check(0)
    check(1, channels[..., :10, :])  # another size
    check(1, channels.float())  # another precision
    check(1)
    encoder.distance_mm.fill_(0.15)  # in place
    check(1)
    encoder.sample_um.data.fill_(1.4)  # behind the back of autograd
    check(1)
    encoder.load_state_dict(FreeSpace(**SPACE, shift_um=(2.0, 1.0)).state_dict(), strict=True)
    check(1)
    encoder.float()  # rounds the numbers
    encoder.double()
    check(1)
    encoder.wavelength_nm = torch.tensor(500.0, dtype=torch.float64)
    check(1)
    check(0)
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(channels), encoder(channels))


def test_what_is_kept_stands_in_no_gradients_way() -> None:
    channels = complex_to_channels(random_field(1, 2, 6, 7))
    encoder = FreeSpace(**SPACE)
    with torch.inference_mode():
        expected = encoder(channels)
    scene = channels.clone().requires_grad_()
    mean = encoder(scene)
    assert torch.equal(mean, expected)
    (back,) = torch.autograd.grad(mean, scene, channels)
    torch.testing.assert_close(back, encoder.A_adjoint(channels), rtol=1e-12, atol=1e-12)

    def at(distance: Tensor) -> Tensor:
        return torch.func.functional_call(encoder, {"distance_mm": distance}, (channels,))

    distance = encoder.distance_mm.clone()
    _, slope = torch.func.jvp(at, (distance,), (torch.ones_like(distance),))
    numeric = (at(distance + 1e-6) - at(distance - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, numeric, rtol=1e-5, atol=1e-5 * float(numeric.abs().max()))
    encoder.requires_grad_(True)
    several = torch.func.vmap(at)(torch.stack((distance, 2 * distance)))
    torch.testing.assert_close(several[1], at(2 * distance), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(at, (distance.requires_grad_(),), eps=1e-7, atol=1e-4, rtol=1e-4)
    learned = FreeSpace(**SPACE, learn=["distance_mm"])
    learned(channels).square().sum().backward()
    assert float(learned.distance_mm.grad.abs().min()) > 0


def test_errors_name_the_argument() -> None:
    field = random_field(4, 4)
    good = {"distance_mm": 1.0, "wavelength_nm": 500.0, "sample_um": 1.0}
    for wrong, message in (
        ({"wavelength_nm": 0.0}, "wavelength_nm: need a positive number"),
        ({"sample_um": -1.0}, "sample_um: need a positive number"),
        ({"distance_mm": math.inf}, "distance_mm: need a finite number"),
        ({"pad": 0.5}, "pad: need a number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            angular_spectrum(field, **{**good, **wrong})
        with pytest.raises(ValueError, match=message):
            FreeSpace(**{**good, **wrong})
    with pytest.raises(ValueError, match="field: need shape"):
        fresnel(field[0], **good)
    with pytest.raises(TypeError, match="field: need a real or complex"):
        fresnel(torch.ones(4, 4, dtype=torch.int64), **good)
    with pytest.raises(ValueError, match="model: need one of"):
        FreeSpace(**good, model="huygens")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="learn: need names among"):
        FreeSpace(**good, learn=["pad"])
    with pytest.raises(ValueError, match="sample_um: need a number, got shape"):
        FreeSpace(**{**good, "sample_um": (1.0, 2.0)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scene: need 2 x 3 channels"):
        FreeSpace(distance_mm=(1.0, 2.0, 3.0), wavelength_nm=500, sample_um=1.0)(torch.zeros(1, 2, 4, 4))
