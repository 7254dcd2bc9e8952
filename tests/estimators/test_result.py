"""The result object, its repetition bit for bit, and errors on what cannot be used."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

import bitlens
from bitlens import GaussianNoise, InformationEstimate, PoissonGaussianNoise, PoissonNoise, estimate_information
from bitlens.estimators import _judge
from bitlens.estimators._judge import judge, stderr_of_difference_bits
from bitlens.kernels import _backend
from bitlens.noise import NoiseModel

pytestmark = pytest.mark.usefixtures("one_thread")

FIELDS = [
    "bits",
    "bits_per_pixel",
    "bound",
    "lower_bits",
    "upper_bits",
    "ceiling_bits",
    "stderr_bits",
    "confidence_interval_bits",
    "method",
    "n_samples",
    "seed",
    "version",
    "backend",
    "converged",
    "warnings",
    "stderr_parts_bits",
]


def example(n: int = 60, shape: tuple[int, ...] = (3, 4), seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mean = 20.0 + 10.0 * torch.rand(n, *shape, generator=rng, dtype=torch.float64)
    return mean, PoissonNoise().sample(mean, rng)


def test_fields_and_json() -> None:
    mean, measured = example()
    for given_mean in (None, mean):
        rng = torch.Generator().manual_seed(11)
        result = estimate_information(measured, PoissonNoise(), mean=given_mean, generator=rng)
        assert [field.name for field in dataclasses.fields(result)] == FIELDS
        loaded = json.loads(result.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
        assert list(loaded) == FIELDS
        assert loaded == result.to_dict()
        assert loaded["bits"] == result.bits
        assert result.bits_per_pixel == result.bits / 12
        assert result.n_samples == 60
        assert result.seed == 11
        assert result.version == bitlens.__version__
        assert result.backend in bitlens.ops.available_backends()
        assert (loaded["lower_bits"] is None) == (given_mean is None)
        low, high = loaded["confidence_interval_bits"]
        assert low < result.bits < high
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.bits = 0.0  # type: ignore[misc]


def test_json_has_null_for_what_is_not_a_number() -> None:
    result = InformationEstimate(
        math.inf,
        math.nan,
        "upper",
        None,
        math.inf,
        None,
        math.nan,
        (-math.inf, math.nan),
        "m",
        1,
        0,
        "v",
        "b",
        True,
        (),
    )
    loaded = json.loads(result.to_json())
    for name in ("bits", "bits_per_pixel", "lower_bits", "upper_bits", "ceiling_bits", "stderr_bits"):
        assert loaded[name] is None
    assert loaded["confidence_interval_bits"] == [None, None]


@pytest.mark.parametrize("method", ["auto", "gaussian", "stationary_gaussian", "known_channel"])
@pytest.mark.parametrize("noise", [GaussianNoise(4.0), PoissonNoise(), PoissonGaussianNoise(read_std=2.0)])
def test_one_seed_gives_one_result_whatever_the_number_of_threads(
    method: str, noise: GaussianNoise | PoissonNoise | PoissonGaussianNoise
) -> None:
    mean, measured = example(200, (5, 6))
    groups = torch.arange(200) // 4
    results = []
    n_threads = torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            rng = torch.Generator().manual_seed(3)
            results.append(
                estimate_information(measured, noise, mean=mean, method=method, groups=groups, generator=rng)
            )
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(n_threads)
    assert results[0] == results[1] == results[2]


def test_a_drawn_seed_is_recorded_and_repeats_the_result() -> None:
    _, measured = example()
    state = torch.random.get_rng_state()
    first = estimate_information(measured, PoissonNoise())
    assert torch.equal(torch.random.get_rng_state(), state)
    again = estimate_information(measured, PoissonNoise(), generator=torch.Generator().manual_seed(first.seed))
    assert first == again
    other = estimate_information(measured, PoissonNoise(), generator=torch.Generator().manual_seed(first.seed + 1))
    assert other.bits != first.bits


@pytest.mark.parametrize("n_drawn", [0, 1, 5, 700])
def test_the_recorded_seed_repeats_the_result_of_any_generator(n_drawn: int) -> None:
    _, measured = example()
    rng = torch.Generator().manual_seed(8)
    torch.rand(n_drawn, generator=rng)
    first = estimate_information(measured, PoissonNoise(), generator=rng)
    second = estimate_information(measured, PoissonNoise(), generator=rng)
    assert (first.seed == 8) == (n_drawn == 0)
    assert len({first.seed, second.seed, 8 if n_drawn else None}) == 3
    assert first.bits != second.bits
    for result in (first, second):
        again = torch.Generator().manual_seed(result.seed)
        assert estimate_information(measured, PoissonNoise(), generator=again) == result


def test_a_generator_moves_on_by_one_draw_whatever_the_work() -> None:
    states = []
    for n in (60, 300):
        rng = torch.Generator().manual_seed(8)
        estimate_information(example(n)[1], PoissonNoise(), generator=rng)
        states.append(rng.get_state())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], torch.Generator().manual_seed(8).get_state())


def test_a_backend_that_cannot_run_is_found_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object) -> None:
        pytest.fail("the work was done first")

    monkeypatch.setattr(_judge, "estimate", work)
    # Forced as by `use_backend`, which itself refuses where there is no GPU.
    monkeypatch.setattr(_backend._settings, "backend", "cuda")
    with pytest.raises(_backend.BackendUnavailable, match="infonce_scores"):
        estimate_information(example()[1], PoissonNoise())


def test_interval_per_pixel_is_that_of_the_image_over_its_pixels() -> None:
    _, measured = example()
    result = estimate_information(measured, PoissonNoise(), generator=torch.Generator().manual_seed(0))
    assert result.n_pixels == 12
    assert result.confidence_interval_bits is not None
    low, high = result.confidence_interval_bits
    assert result.confidence_interval_bits_per_pixel == (low / 12, high / 12)
    without = dataclasses.replace(result, confidence_interval_bits=None)
    assert without.confidence_interval_bits_per_pixel is None
    for bits in (0.0, math.nan, math.inf):
        unknown = dataclasses.replace(result, bits=bits, bits_per_pixel=bits / 12)
        assert unknown.n_pixels is None
        assert unknown.confidence_interval_bits_per_pixel is None


def test_error_of_a_difference_on_the_same_scenes_is_that_of_the_paired_images() -> None:
    # One image gains exactly what every other gains: the difference has no error, however wide both ends are.
    rng = torch.Generator().manual_seed(0)
    white = torch.randn(400, 3, generator=rng, dtype=torch.float64)
    noise = GaussianNoise(1.0)
    ends = [
        judge(scale * white, noise, mean=None, method="gaussian", generator=torch.Generator().manual_seed(1))
        for scale in (2.0, 6.0)
    ]
    before, after = ends
    assert after.estimate.bits - before.estimate.bits == pytest.approx(3 * math.log2(3.0))
    assert before.estimate.stderr_bits is not None
    assert before.estimate.stderr_bits > 0.05
    assert stderr_of_difference_bits(before, after) < 1e-9
    assert stderr_of_difference_bits(before, before) == 0.0


def test_arrays_and_tensors_of_any_real_type_agree_and_are_left_alone() -> None:
    mean, measured = example()
    reference = None
    for convert in (
        lambda value: value,
        lambda value: value.numpy(),
        lambda value: value.to(torch.float32),
        lambda value: value.numpy()[::-1][::-1],
        lambda value: value.numpy().astype(">f8"),
        lambda value: value.clone().requires_grad_(),
    ):
        given_measured, given_mean = convert(measured), convert(torch.round(mean))
        result = estimate_information(
            given_measured, PoissonNoise(), mean=given_mean, generator=torch.Generator().manual_seed(0)
        )
        reference = reference or result
        assert result == reference
    integers = estimate_information(
        measured.numpy().astype(np.uint16), PoissonNoise(), generator=torch.Generator().manual_seed(0)
    )
    assert integers == estimate_information(measured, PoissonNoise(), generator=torch.Generator().manual_seed(0))


def test_without_image_axes_no_density_of_images_is_tried() -> None:
    _, measured = example(200, (6,))
    method = estimate_information(measured, PoissonNoise(), generator=torch.Generator().manual_seed(0)).method
    assert "stationary" not in method
    assert "shift" not in method
    sensor = PoissonGaussianNoise(read_std=2.0, adc_bits=12)
    assert estimate_information(measured, sensor, generator=torch.Generator().manual_seed(0)).method == "gaussian"
    with pytest.raises(ValueError, match="need more images to fit a Gaussian to 30 pixels"):
        estimate_information(example(20, (30,))[1], sensor)


def test_few_images_of_many_pixels_fall_back_to_the_stationary_density() -> None:
    _, measured = example(20, (8, 8))
    rng = torch.Generator().manual_seed(0)
    result = estimate_information(measured, PoissonNoise(), generator=rng)
    assert result.method == "stationary_gaussian"
    assert any("20 images are few for the 64 pixels" in warning for warning in result.warnings)
    with pytest.raises(ValueError, match="at least 67 images"):
        estimate_information(measured, PoissonNoise(), method="gaussian")


@pytest.mark.parametrize(
    ("method", "noise", "words"),
    [
        ("scale_mixture", GaussianNoise(1.0), "grows with the mean"),
        ("independent_pixels", GaussianNoise(1.0), "grows with the mean"),
        ("scene_mixture", PoissonGaussianNoise(read_std=2.0, adc_bits=12), "without ADC"),
        ("shift_mixture", PoissonNoise(), "shape \\(n, row, column\\)"),
    ],
)
def test_densities_that_do_not_suit_are_refused(method: str, noise: NoiseModel, words: str) -> None:
    _, measured = example(200, (6,))
    with pytest.raises(ValueError, match=words):
        estimate_information(measured, noise, method=method)


@pytest.mark.parametrize("n_groups", [2, 3, 5])
def test_few_groups_are_said(n_groups: int) -> None:
    mean, measured = example(60)
    groups = [f"image {index % n_groups}" for index in range(60)]
    result = estimate_information(
        measured, PoissonNoise(), mean=mean, groups=groups, generator=torch.Generator().manual_seed(0)
    )
    assert any(f"{n_groups} groups are few" in warning for warning in result.warnings)
    assert all(math.isfinite(value) for value in (result.bits, result.stderr_bits or math.nan))


def bad(shape: tuple[int, ...], index: int, value: float) -> Tensor:
    measured = torch.full(shape, 3.0, dtype=torch.float64)
    measured.view(-1)[index] = value
    return measured


@pytest.mark.parametrize(
    ("measured", "mean", "match"),
    [
        (torch.zeros(0, 4, 4), None, "measured: need at least one image"),
        (torch.zeros(20, 0), None, "measured: need at least one image"),
        (torch.zeros(20), None, "measured: need shape"),
        (torch.tensor(3.0), None, "measured: need shape"),
        (torch.zeros(9, 4, 4), None, "measured: need at least 10 images, got 9"),
        (bad((20, 4), 7, math.nan), None, "measured: need finite"),
        (bad((20, 4), 7, math.inf), None, "measured: need finite"),
        (bad((20, 4), 7, -1.0), None, "measured"),
        (bad((20, 4), 7, 0.5), None, "measured"),
        (torch.ones(20, 4), torch.ones(20, 5), r"mean: need the shape of measured, \(20, 4\), got \(20, 5\)"),
        (torch.ones(20, 4), torch.ones(19, 4), "mean: need the shape"),
        (torch.ones(20, 4), bad((20, 4), 3, -1e-3), "mean"),
        (torch.ones(20, 4), bad((20, 4), 3, math.nan), "mean: need finite"),
        (torch.ones(20, 4), bad((20, 4), 3, 0.0), "probability 0"),
    ],
)
def test_unusable_images_are_named(measured: Tensor, mean: Tensor | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        estimate_information(measured, PoissonNoise(), mean=mean)


def test_other_unusable_arguments_are_named() -> None:
    mean, measured = example()
    noise = PoissonNoise()
    with pytest.raises(ValueError, match="method: need one of"):
        estimate_information(measured, noise, method="magic")
    with pytest.raises(ValueError, match="mean: method 'known_channel' needs"):
        estimate_information(measured, noise, method="known_channel")
    with pytest.raises(ValueError, match="row, column"):
        estimate_information(measured.flatten(1), noise, method="stationary_gaussian")
    with pytest.raises(ValueError, match="confidence"):
        estimate_information(measured, noise, confidence=95)
    with pytest.raises(ValueError, match=r"groups: need one label per sample, shape \(60,\), got \(59,\)"):
        estimate_information(measured, noise, groups=range(59))
    with pytest.raises(ValueError, match="at least 2 groups"):
        estimate_information(measured, noise, groups=[1] * 60)
    with pytest.raises(ValueError, match="groups: need finite"):
        estimate_information(measured, noise, groups=[math.nan] * 60)
    with pytest.raises(TypeError, match="noise: need a noise model"):
        estimate_information(measured, 2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"generator: need a torch\.Generator"):
        estimate_information(measured, noise, generator=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="measured: need an array of real numbers"):
        estimate_information(np.array([["a"] * 4] * 20), noise)
    with pytest.raises(TypeError, match="measured: need"):
        estimate_information(torch.ones(20, 4, dtype=torch.complex64), noise)
    with pytest.raises(ValueError, match="vary"):
        estimate_information(torch.ones(20, 4, 4), GaussianNoise(1.0))
    with pytest.raises(ValueError, match="full rank"):
        estimate_information(torch.ones(40, 4), GaussianNoise(1.0))
    assert mean.shape == measured.shape


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=12),
        elements=st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1.0]),
    ),
    st.sampled_from(["auto", "gaussian", "stationary_gaussian"]),
    st.sampled_from([GaussianNoise(1.0), PoissonNoise(), PoissonGaussianNoise(read_std=1.0)]),
)
def test_any_array_gives_a_finite_result_or_a_clear_error(
    measured: np.ndarray, method: str, noise: GaussianNoise | PoissonNoise | PoissonGaussianNoise
) -> None:
    try:
        result = estimate_information(measured, noise, method=method, generator=torch.Generator())
    except (ValueError, TypeError) as error:
        assert str(error).split(":")[0] in ("measured", "groups", "mean")  # noqa: PT017
    else:
        assert math.isfinite(result.bits)
        json.loads(result.to_json())
