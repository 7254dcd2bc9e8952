"""Smear and time delay integration against closed forms and simulations in small steps of time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bitlens.encoders.motion import MotionSmear, TimeDelayIntegration, path_psf


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def splat(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, reach: int) -> np.ndarray:
    """Sum of bilinearly interpolated points."""
    index = np.arange(-reach, reach + 1)
    row = np.clip(1 - np.abs(rows[:, None] - index), 0, None)
    column = np.clip(1 - np.abs(columns[:, None] - index), 0, None)
    return (row * weights[:, None]).T @ column


def smear_in_steps(length: float, degrees: float, shutter: list[float], reach: int, steps: int = 30_000) -> np.ndarray:
    time = (np.arange(steps) + 0.5) / steps
    along = length * (time - 0.5)
    weights = np.asarray(shutter)[(time * len(shutter)).astype(int)] / steps
    angle = math.radians(degrees)
    return splat(along * math.sin(angle), along * math.cos(angle), weights, reach)


@pytest.mark.parametrize("length", [0.3, 1.0, 2.0, 3.7, 6.0])
@pytest.mark.parametrize("degrees", [0.0, 90.0, 45.0, -20.0, 130.0])
def test_against_a_simulation_in_time(length: float, degrees: float) -> None:
    smear = MotionSmear(length, direction_degrees=degrees, reach_pixels=5)
    expected = smear_in_steps(length, degrees, [1.0], 5)
    np.testing.assert_allclose(smear.psf().numpy(), expected, rtol=0, atol=2e-8)


def test_a_coded_exposure_against_a_simulation_in_time() -> None:
    shutter = [1.0, 0.0, 0.25, 1.0, 0.5]
    smear = MotionSmear(7.3, direction_degrees=30, shutter=shutter)
    psf = smear.psf().numpy()
    np.testing.assert_allclose(psf, smear_in_steps(7.3, 30, shutter, smear.reach_pixels), rtol=0, atol=5e-8)
    assert psf.sum() == pytest.approx(0.55, rel=1e-12)


@pytest.mark.parametrize("length", [0.5, 2.0, 4.6])
def test_a_line_along_the_columns_is_a_box_of_a_triangle(length: float) -> None:
    def integral(x: np.ndarray) -> np.ndarray:
        x = np.clip(x, -1, 1)
        return np.where(x < 0, 0.5 * (1 + x) ** 2, 1 - 0.5 * (1 - x) ** 2)

    smear = MotionSmear(length)
    index = np.arange(-smear.reach_pixels, smear.reach_pixels + 1)
    expected = (integral(index + length / 2) - integral(index - length / 2)) / length
    psf = smear.psf().numpy()
    np.testing.assert_allclose(psf[smear.reach_pixels], expected, rtol=0, atol=1e-15)
    assert np.delete(psf, smear.reach_pixels, axis=0).max() == 0.0


def test_no_motion_changes_nothing() -> None:
    scene = rand(1, 2, 6, 7)
    torch.testing.assert_close(MotionSmear(0.0, boundary="zero")(scene), scene, rtol=0, atol=1e-15)


def test_no_light_is_lost_on_the_way() -> None:
    for seed in range(30):
        length, degrees, drift = rand(3, seed=seed).tolist()
        for psf in (
            MotionSmear(9 * length, direction_degrees=360 * degrees).psf(),
            TimeDelayIntegration(16, mismatch_pixels=length - 0.5, drift_pixels=drift - 0.5, n_phases=3).psf(),
        ):
            assert float(psf.sum()) == pytest.approx(1.0, rel=1e-13)
            assert float(psf.min()) >= 0.0
            torch.testing.assert_close(psf, psf.flip((0, 1)), rtol=0, atol=1e-14)  # the same forwards and backwards


@pytest.mark.parametrize("degrees", [0.0, 33.0, 90.0])
def test_derivative_in_the_length_is_that_of_the_simulation(degrees: float) -> None:
    # Exact integration: finite differences of the simulation agree, also where the line's end crosses a pixel centre.
    for length in (1.3, 3.99):
        value = torch.tensor(length, dtype=torch.float64)

        def psf(value: torch.Tensor, smear: MotionSmear) -> torch.Tensor:
            smear.length_pixels = value
            return smear.psf()

        smear = MotionSmear(length, direction_degrees=degrees, reach_pixels=4)
        _, slope = torch.func.jvp(lambda v, smear=smear: psf(v, smear), (value,), (torch.ones_like(value),))
        step = 1e-3
        up, down = (smear_in_steps(length + sign * step, degrees, [1.0], 4, 200_000) for sign in (1, -1))
        np.testing.assert_allclose(slope.numpy(), (up - down) / (2 * step), rtol=0, atol=2e-4)


def test_a_length_is_found_again_by_descent() -> None:
    scene = rand(1, 1, 24, 24)
    target = MotionSmear(3.4, direction_degrees=20, reach_pixels=4)(scene)
    smear = MotionSmear(1.5, direction_degrees=20, reach_pixels=4, learn=("length_pixels",))
    optimizer = torch.optim.LBFGS(
        smear.parameters(), max_iter=50, line_search_fn="strong_wolfe", tolerance_change=1e-14
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = 1e3 * (smear(scene) - target).square().mean()
        value.backward()
        return value

    optimizer.step(loss)
    assert float(smear.length_pixels.detach()) == pytest.approx(3.4, abs=1e-4)


def test_direction_goes_from_columns_to_rows() -> None:
    scene = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    scene[..., 4, 4] = 1
    closed_after = MotionSmear(4.0, direction_degrees=90, shutter=(1.0, 0.0), boundary="zero")(scene)
    assert float(closed_after[..., :4, 4].sum()) > 0.3
    assert float(closed_after[..., 5, 4]) < 0.1
    assert float(closed_after[..., 6:, :].sum()) == 0.0


@pytest.mark.parametrize(("mismatch", "drift", "n_phases"), [(0.0, 0.0, 1), (0.21, 0.0, 1), (-0.17, 0.11, 3)])
def test_charge_that_follows_the_image(mismatch: float, drift: float, n_phases: int) -> None:
    """A packet of charge and the image above it, in small steps of time, on a scene linear between its samples."""
    n_stages, size, steps = 6, 15, 60_000
    scene = rand(size, size).numpy()
    time = n_stages * (np.arange(steps) + 0.5) / steps
    charge = np.floor(time * n_phases) / n_phases  # where the packet is, in rows
    image = (1 + mismatch) * time  # where the image is that lay at the origin
    lag, aside = image - charge, drift * time
    lag, aside = lag - lag.mean(), aside - aside.mean()
    sensor = TimeDelayIntegration(
        n_stages, mismatch_pixels=mismatch, drift_pixels=drift, n_phases=n_phases, boundary="circular"
    )
    measured = sensor(torch.from_numpy(scene)[None, None])[0, 0].numpy()
    index = np.arange(size)
    for row, column in ((7, 7), (3, 10)):
        # The packet that ends up in this row sees the scene's point that glides past it.
        down, across = row - lag, column - aside
        below = np.clip(1 - np.abs(down[:, None] - index), 0, None)
        beside = np.clip(1 - np.abs(across[:, None] - index), 0, None)
        seen = np.einsum("tr,rc,tc->t", below, scene, beside).mean()
        assert measured[row, column] == pytest.approx(seen, abs=1e-5)


def test_stages_in_step_blur_by_one_jump_of_the_charge() -> None:
    column = TimeDelayIntegration(32).psf()[:, 2]
    torch.testing.assert_close(column, torch.tensor([0, 1 / 8, 3 / 4, 1 / 8, 0], dtype=torch.float64))


def test_many_phases_glide_like_a_smear() -> None:
    sensor = TimeDelayIntegration(20, mismatch_pixels=0.15, n_phases=400, reach_pixels=4)
    glide = MotionSmear(3.0, direction_degrees=90, reach_pixels=4)
    torch.testing.assert_close(sensor.psf(), glide.psf(), rtol=0, atol=1e-3)


def test_a_weighted_path_in_two_pieces() -> None:
    starts = torch.tensor([[0.2, -1.1], [1.4, 0.3]], dtype=torch.float64)
    ends = torch.tensor([[1.4, 0.3], [-0.7, 1.0]], dtype=torch.float64)
    weights = torch.tensor([0.25, 2.0], dtype=torch.float64)
    time = (np.arange(100_000) + 0.5)[:, None] / 100_000
    expected = 0.0
    for start, end, weight in zip(starts.numpy(), ends.numpy(), weights.tolist(), strict=True):
        place = start + time * (end - start)
        expected = expected + splat(place[:, 0], place[:, 1], np.full(len(time), weight / len(time)), 3)
    np.testing.assert_allclose(path_psf(starts, ends, weights, 3).numpy(), expected, rtol=0, atol=1e-8)
    assert torch.autograd.gradcheck(
        lambda *values: path_psf(*values, 3), [v.requires_grad_() for v in (starts, ends)] + [weights]
    )


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(ValueError, match="length_pixels: need at least 0, got -1"):
        MotionSmear(-1)
    with pytest.raises(ValueError, match="reach_pixels: need at least 4 for this motion, got 3"):
        MotionSmear(6, reach_pixels=3)
    with pytest.raises(ValueError, match=r"shutter: need values of 0 to 1, got 1\.5"):
        MotionSmear(2, shutter=(0.0, 1.5))
    with pytest.raises(ValueError, match=r"boundary: need one of \('crop', 'zero', 'circular'\), got 'wrap'"):
        MotionSmear(2, boundary="wrap")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_stages: need at least 1, got 0"):
        TimeDelayIntegration(0)
    with pytest.raises(ValueError, match="n_phases: need at least 1, got 0"):
        TimeDelayIntegration(2, n_phases=0)
    assert MotionSmear(3, reach_pixels=5).parameter_domain["length_pixels"] == (0.0, 8.0)
    lower, upper = TimeDelayIntegration(4, reach_pixels=5).parameter_domain["mismatch_pixels"]
    assert (lower, upper) == (-1.75, 1.75)
    assert float(TimeDelayIntegration(4, mismatch_pixels=1.75, reach_pixels=5).psf().sum()) == pytest.approx(1)
