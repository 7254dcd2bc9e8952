"""Pixels with dead borders, the detector's formula, its maps and its noise model."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from bitlens.design import gaussian_information
from bitlens.encoders.detector import (
    Detector,
    PixelSampling,
    active_area_weights,
    dark_signal_map,
    detector_noise,
    photo_response_map,
)
from bitlens.encoders.sensor import integrate_pixels


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_a_full_active_area_is_the_mean_of_squares(factor: int) -> None:
    scene = rand(2, 3, 4 * factor, 5 * factor)
    torch.testing.assert_close(PixelSampling(factor)(scene), integrate_pixels(scene, factor))


@pytest.mark.parametrize(("factor", "side"), [(4, 0.75), (4, 0.5), (3, 0.4), (2, 0.9), (5, 0.04), (1, 0.4)])
def test_an_active_area_cuts_samples(factor: int, side: float) -> None:
    # Each sample as 50 x 50 equal parts, of which the active area has some and not the others.
    scene, parts = rand(1, 1, 2 * factor, 3 * factor), 50
    fine = np.kron(scene[0, 0].numpy(), np.ones((parts, parts)))
    middle = (np.arange(factor * parts) + 0.5) / (factor * parts) - 0.5
    active = (np.abs(middle) < 0.5 * side).astype(float)
    assert active.mean() == pytest.approx(side), "the parts resolve this side"
    pixels = np.einsum("rick,i,k->rc", fine.reshape(2, factor * parts, 3, factor * parts), active, active)
    mean = PixelSampling(factor, fill_factor=side**2)(scene)[0, 0].numpy()
    np.testing.assert_allclose(mean, pixels / (factor * parts) ** 2, rtol=1e-10)


def test_the_weights_add_up_to_the_active_side() -> None:
    for samples in (1, 2, 5, 8):
        for fill in (0.01, 0.3, 0.64, 1.0):
            weights = active_area_weights(samples, torch.tensor(fill, dtype=torch.float64))
            assert float(weights.sum()) == pytest.approx(math.sqrt(fill))
            torch.testing.assert_close(weights, weights.flip(0))


def test_a_part_of_a_pixel_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"scene: need rows and columns that are multiples of factor = 2, got"):
        PixelSampling(2)(rand(1, 1, 4, 5))
    with pytest.raises(ValueError, match="factor: need at least 1, got 0"):
        PixelSampling(0)
    with pytest.raises(ValueError, match=r"fill_factor: need a number above 0 and at most 1, got 1\.1"):
        PixelSampling(2, fill_factor=1.1)


def full_detector(learn: tuple[str, ...] = ()) -> Detector:
    return Detector(
        quantum_efficiency=(0.4, 0.6),
        exposure_s=0.02,
        dark_electrons_per_s=rand(5, 6, seed=1),
        photo_response=0.5 + rand(5, 6, seed=2),
        learn=learn,
    )


def test_the_mean_is_light_and_dark_signal() -> None:
    scene = 1000 * rand(3, 2, 5, 6)
    efficiency = np.asarray([0.4, 0.6])[:, None, None]
    light = efficiency * (0.5 + rand(5, 6, seed=2)).numpy() * scene.numpy()
    mean = full_detector()(scene)
    np.testing.assert_allclose(mean.numpy(), 0.02 * (light + rand(5, 6, seed=1).numpy()), rtol=1e-13)
    plain = Detector(quantum_efficiency=0.7, exposure_s=2.0, dark_electrons_per_s=3.0)
    np.testing.assert_allclose(plain(scene.numpy()).numpy(), 1.4 * scene.numpy() + 6.0, rtol=1e-13)


def test_the_linear_part_has_its_adjoint() -> None:
    detector = full_detector()
    scene, measured = rand(3, 2, 5, 6, seed=3) - 0.5, rand(3, 2, 5, 6, seed=4)
    left, right = (detector.A(scene) * measured).sum(), (scene * detector.A_adjoint(measured)).sum()
    assert float(left) == pytest.approx(float(right), rel=1e-12)
    positive = scene.abs()
    torch.testing.assert_close(detector(positive) - detector.dark_electrons(), detector.A(positive))


def test_light_below_zero_is_none() -> None:
    detector = full_detector()
    below = torch.full((1, 2, 5, 6), -1e-9, dtype=torch.float64)
    torch.testing.assert_close(detector(below), detector.dark_electrons().expand(1, 2, 5, 6), rtol=0, atol=0)


def test_gradients_in_every_number() -> None:
    names = ("quantum_efficiency", "exposure_s", "dark_electrons_per_s", "photo_response")
    detector = full_detector(names)
    assert {name for name, _ in detector.named_parameters()} == set(names)
    scene = rand(1, 2, 5, 6)
    values = [value.detach().clone().requires_grad_() for value in detector.parameters()]
    order = [name for name, _ in detector.named_parameters()]

    def mean(*given: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(detector, dict(zip(order, given, strict=True)), (scene,))

    assert torch.autograd.gradcheck(mean, values)


def test_a_learned_response_adds_no_light() -> None:
    """Ten times the map is the same map; what one pixel gains the others lose; no pixel has more than QE 1."""
    scene = 1000 * rand(2, 2, 5, 6)
    detector = full_detector(("photo_response",))
    before = detector(scene).detach()
    with torch.no_grad():
        detector.photo_response.mul_(10.0)
    torch.testing.assert_close(detector(scene).detach(), before, rtol=1e-12, atol=0)
    plain = full_detector()
    plain.load_state_dict(detector.state_dict())
    torch.testing.assert_close(plain(scene), before, rtol=1e-12, atol=0)
    with torch.no_grad():
        detector.photo_response.fill_(0.1)
        detector.photo_response[2, 3] = 10.0
        share = detector.electrons_per_rate() / 0.02
    assert float(share[:, 2, 3].max()) == 1.0
    mean = float((0.5 + rand(5, 6, seed=2)).mean())
    expected = 0.1 * mean / ((29 * 0.1 + 10.0) / 30)
    torch.testing.assert_close(share[1, 0], torch.full((6,), 0.6 * expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_climbing_the_response_stays_below_one_electron_a_photon() -> None:
    detector = Detector(quantum_efficiency=0.8, photo_response=torch.ones(3, 4), learn=("photo_response",))
    lower, upper = detector.parameter_domain["photo_response"]
    assert (lower, upper) == (0.0, pytest.approx(1.25))
    with torch.no_grad():
        detector.photo_response.fill_(1.25)
    scene = torch.full((1, 1, 3, 4), 100.0)
    torch.testing.assert_close(detector(scene).detach(), torch.full_like(scene, 80.0))
    dead = Detector(photo_response=torch.zeros(3, 4))
    assert float(dead(scene).abs().max()) == 0.0


def test_maps_have_the_moments_they_state_and_repeat() -> None:
    size, count = (400, 500), 200_000
    response = photo_response_map(size, 0.02, generator=seeded())
    assert abs(float(response.mean()) - 1) < 4 * 0.02 / math.sqrt(count)
    assert abs(float(response.std()) - 0.02) < 4 * 0.02 / math.sqrt(2 * count)
    assert float(photo_response_map(size, 2.0, generator=seeded()).min()) == 0.0
    dark = dark_signal_map(size, 5.0, 2.0, generator=seeded(1))
    assert float(dark.min()) > 0
    assert abs(float(dark.mean()) - 5) < 4 * 2 / math.sqrt(count)
    # A log-normal of variation coefficient 0.4 has kurtosis 6.4: the spread of its standard deviation follows.
    assert abs(float(dark.std()) - 2) < 4 * 2 * math.sqrt((6.4 - 1) / (4 * count))
    centred = (dark - dark.mean()) / dark.std()
    assert float((centred**3).mean()) == pytest.approx(3 * 0.4 + 0.4**3, rel=0.05), "its tail is of warm pixels"
    assert torch.equal(dark, dark_signal_map(size, 5.0, 2.0, generator=seeded(1)))
    assert torch.equal(response, photo_response_map(size, 0.02, generator=seeded()))
    assert bool((dark_signal_map((3, 3), 5.0, 0.0, generator=seeded()) == 5.0).all())


def test_noise_of_a_data_sheet() -> None:
    noise = detector_noise(read_electrons=3.0, gain=0.5, converter_std=2.0, offset=10, adc_bits=10)
    assert float(noise.read_std) == pytest.approx(2.5)
    assert noise.adc_bits == 10
    assert float(detector_noise(read_electrons=2.4).read_std) == pytest.approx(2.4)


def test_a_full_well_clips_what_is_measured_and_not_the_mean() -> None:
    detector = Detector(quantum_efficiency=0.5)
    noise = detector_noise(read_electrons=0.1, full_well_electrons=1000)
    mean = detector(torch.full((1, 1, 30, 30), 3000.0))
    assert float(mean.max()) == pytest.approx(1500.0)
    assert float(noise.sample(mean, seeded()).max()) < 1000 + 6 * 0.1


def test_gain_can_be_learned() -> None:
    gain = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    noise = detector_noise(read_electrons=3.0, gain=gain)
    assert [name for name, _ in noise.named_parameters()] == ["gain"]
    noise.log_prob(rand(4), 10 + rand(4, seed=1)).sum().backward()
    assert gain.grad is not None
    assert float(gain.grad) != 0.0


def test_read_noise_before_the_amplifier_grows_with_a_learned_gain() -> None:
    mean = 20.0 * rand(200, 1, 3, 3)
    values = []
    for converter_std in (0.0, 2.0):
        gain = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
        noise = detector_noise(read_electrons=3.0, gain=gain, converter_std=converter_std)
        bits = gaussian_information(mean.double(), noise)
        (slope,) = torch.autograd.grad(bits, gain)
        values.append(float(slope))
        with torch.no_grad():
            gain.copy_(torch.tensor(2.0))
        assert float(noise.read_std.detach()) == pytest.approx(math.hypot(6.0, converter_std))
        assert float(noise.variance(torch.tensor(5.0)).detach()) == pytest.approx(4 * 5 + 36 + converter_std**2)
    # Counts in other units carry the same; only against noise behind it does a gain pay.
    assert abs(values[0]) < 1e-9
    assert values[1] > 0.1
    again = copy.deepcopy(noise)
    again.load_state_dict(noise.state_dict())
    assert torch.equal(again.read_std, noise.read_std)


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match=r"quantum_efficiency: need values of 0 to 1, got 1\.5"):
        Detector(quantum_efficiency=1.5)
    with pytest.raises(ValueError, match="exposure_s: need at least 0, got -1"):
        Detector(exposure_s=-1)
    with pytest.raises(ValueError, match=r"photo_response: need a number or \(row, column\), got shape \(3,\)"):
        Detector(photo_response=(1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"learn: need a map \(row, column\) to learn photo_response, got a number"):
        Detector(learn=("photo_response",))
    with pytest.raises(ValueError, match=r"scene: need the maps' rows and columns \(5, 6\), got \(1, 2, 5, 5\)"):
        full_detector()(rand(1, 2, 5, 5))
    with pytest.raises(ValueError, match="scene: need 2 channels, one per quantum_efficiency"):
        full_detector()(rand(1, 3, 5, 6))
    with pytest.raises(ValueError, match="read_electrons: need at least 0, got -1"):
        detector_noise(read_electrons=-1)
    with pytest.raises(ValueError, match="read_electrons: need read noise, or a converter_std, above 0, got 0"):
        detector_noise(read_electrons=0)
    with pytest.raises(ValueError, match="std: need at least 0, got -1"):
        photo_response_map((2, 2), -1, generator=seeded())
    with pytest.raises(ValueError, match="mean: need a positive number, got 0"):
        dark_signal_map((2, 2), 0, 1, generator=seeded())
