"""Systems as deepinv physics and back, against explicit matrices, sample moments and closed forms."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bitlens
from bitlens import systems
from bitlens.design.constraints import Energy
from bitlens.encoders import Camera, CartesianSampling, ParallelProjection, Patterns, PSFConvolution

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS, COLUMNS = 6, 5
PSF = torch.tensor([[0.05, 0.1, 0.05], [0.1, 0.35, 0.15], [0.05, 0.1, 0.05]])


@pytest.fixture
def compat() -> Any:
    pytest.importorskip("deepinv")
    return importlib.import_module("bitlens.compat.deepinv")


@pytest.fixture
def physics() -> Any:
    pytest.importorskip("deepinv")
    return importlib.import_module("deepinv.physics")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=generator(seed))


def matrix_of(function: Any, scene_shape: tuple[int, ...]) -> Tensor:
    """Float64 (measurements, pixels) of a linear map, a column for each unit scene."""
    units = torch.eye(math.prod(scene_shape)).reshape(-1, *scene_shape)
    with torch.no_grad():
        return function(units).flatten(1).T.double()


def linear_encoders() -> list[tuple[str, nn.Module, tuple[int, int, int]]]:
    angles = torch.arange(9) * math.pi / 9
    return [
        ("blur", PSFConvolution(PSF), (1, ROWS, COLUMNS)),
        ("two channels", PSFConvolution(PSF, boundary="circular"), (2, ROWS, COLUMNS)),
        ("patterns", Patterns(random(40, ROWS, COLUMNS), display="transmission"), (1, ROWS, COLUMNS)),
        ("projection", ParallelProjection(angles, (ROWS, COLUMNS), bins=9), (1, ROWS, COLUMNS)),
        ("Fourier", CartesianSampling(torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])), (1, ROWS, COLUMNS)),
    ]


linear = pytest.mark.parametrize(
    ("name", "encoder", "shape"), linear_encoders(), ids=lambda v: v if type(v) is str else ""
)


class Intensity(nn.Module):
    """y = (A x)^2: nonlinear, with the Jacobian 2 diag(A x) A."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = PSFConvolution(PSF)

    def forward(self, scene: Tensor) -> Tensor:
        return self.blur(scene) ** 2


def test_a_missing_deepinv_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepinv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deepinv", None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "bitlens.compat.deepinv", raising=False)
    with pytest.raises(ImportError, match=r"pip install bitlens\[deepinv\]"):
        importlib.import_module("bitlens.compat.deepinv")


# ---- Without deepinv: its classes as far as ours build on them ----


class StubPhysics(nn.Module):
    def __init__(self, A: Any, noise_model: nn.Module) -> None:
        super().__init__()
        self.A, self.noise_model = A, noise_model

    def forward(self, scene: Tensor) -> Tensor:
        return self.noise_model(self.A(scene))


class StubLinearPhysics(StubPhysics):
    def __init__(self, A: Any, A_adjoint: Any, img_size: object, noise_model: nn.Module) -> None:
        super().__init__(A, noise_model)
        self.A_adjoint, self.img_size = A_adjoint, img_size


class StubNoise(nn.Module):
    def __init__(self, rng: torch.Generator | None = None, **numbers: float) -> None:
        super().__init__()
        self.rng, self.numbers = rng, numbers

    def rng_manual_seed(self, seed: int | None) -> None:
        if seed is not None and self.rng is not None:
            self.rng.manual_seed(seed)

    def forward(self, mean: Tensor) -> Tensor:
        return mean


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """bitlens.compat.deepinv over these stubs, installed or not; its noise is our own or none."""
    classes = types.ModuleType("deepinv.physics")
    classes.Physics, classes.LinearPhysics = StubPhysics, StubLinearPhysics  # type: ignore[attr-defined]
    for name in ("NoiseModel", "ZeroNoise", "GaussianNoise", "PoissonNoise", "PoissonGaussianNoise"):
        setattr(classes, name, type(name, (StubNoise,), {}))
    package = types.ModuleType("deepinv")
    package.physics = classes  # type: ignore[attr-defined]
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepinv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deepinv", package)
    monkeypatch.setitem(sys.modules, "deepinv.physics", classes)
    monkeypatch.delitem(sys.modules, "bitlens.compat.deepinv", raising=False)
    monkeypatch.setattr(bitlens.compat, "deepinv", None, raising=False)
    try:
        yield importlib.import_module("bitlens.compat.deepinv")
    finally:
        sys.modules.pop("bitlens.compat.deepinv", None)  # the next import is of the true one


def test_the_mean_of_every_systems_physics_is_the_encoders_own(stub: Any) -> None:
    linear_names, affine_names = set(), set()
    for name, (encoder, noise, scenes) in small_systems():
        wide = systems.ImagingSystem(encoder.double(), noise, scenes[:2].double())
        ours = stub.as_physics(wide, generator=generator())
        mean = encoder(wide.scenes)
        assert torch.equal(ours.A(wide.scenes), mean), name
        if type(ours.noise_model).__module__ == stub.__name__:  # deepinv's own noise is a stub
            assert torch.equal(ours(wide.scenes), noise.sample(mean, generator())), name
        if isinstance(ours, StubLinearPhysics):
            linear_names.add(name)
            assert not bool(encoder(torch.zeros_like(wide.scenes)).any()), name
        elif hasattr(encoder, "A"):
            affine_names.add(name)
            empty = ours.A(torch.zeros_like(wide.scenes))
            torch.testing.assert_close(ours.linear_part.A(wide.scenes) + empty, mean, rtol=1e-9, atol=1e-9)
            assert isinstance(ours.linear_part, StubLinearPhysics), name
            assert type(ours.linear_part.noise_model).__name__ == "ZeroNoise", name
    assert {"mri", "radio_interferometer"} <= linear_names
    assert {"color_camera", "fluorescence_microscope", "optical_telescope"} <= affine_names


def test_what_is_not_known_to_be_linear_is_no_linear_physics(stub: Any) -> None:
    class Raised(nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.offset = offset

        def A(self, scene: Tensor) -> Tensor:
            return 2 * scene

        A_adjoint = A

        def forward(self, scene: Tensor) -> Tensor:
            return self.A(scene) + self.offset

    shape = (1, ROWS, COLUMNS)
    assert isinstance(stub.as_physics(Raised(0.0), scene_shape=shape), StubLinearPhysics)
    assert not isinstance(stub.as_physics(Raised(0.1), scene_shape=shape), StubLinearPhysics)
    assert not isinstance(stub.as_physics(Raised(0.0)), StubLinearPhysics)
    assert isinstance(stub.as_physics(PSFConvolution(PSF)), StubLinearPhysics)


# ---- Ours in deepinv's solvers ----


@linear
def test_adjoint_and_norm(
    compat: Any, physics: Any, name: str, encoder: nn.Module, shape: tuple[int, int, int]
) -> None:
    ours = compat.as_physics(encoder, scene_shape=shape)
    assert isinstance(ours, physics.LinearPhysics)
    assert ours.img_size == shape
    assert float(ours.adjointness_test(num_samples=8)) < 2e-6
    largest = torch.linalg.svdvals(matrix_of(encoder, shape))[0]
    found = ours.compute_norm(random(1, *shape), squared=False, max_iter=3000, tol=1e-6, verbose=False)
    torch.testing.assert_close(found.double(), largest, rtol=1e-3, atol=0)


@linear
def test_pseudo_inverse_and_proximal_step(
    compat: Any, name: str, encoder: nn.Module, shape: tuple[int, int, int]
) -> None:
    ours = compat.as_physics(encoder, scene_shape=shape)
    matrix = matrix_of(encoder, shape)
    scene, start = random(2, *shape), random(2, *shape, seed=1)
    measured = ours.A(scene)
    # What the inverse cannot see is left out of the comparison: both are held against each other in the measurement.
    inverse = ours.A_dagger(measured, solver="lsqr", max_iter=400, tol=1e-7)
    torch.testing.assert_close(ours.A(inverse), measured, rtol=1e-3, atol=1e-3)
    gamma = 0.7
    proximal = ours.prox_l2(start, measured, gamma, max_iter=400, tol=1e-8)
    normal = gamma * matrix.T @ matrix + torch.eye(matrix.shape[1], dtype=torch.float64)
    right = gamma * measured.flatten(1).double() @ matrix + start.flatten(1).double()
    expected = torch.linalg.solve(normal, right.T).T
    torch.testing.assert_close(proximal.flatten(1).double(), expected, rtol=1e-4, atol=1e-4)


def test_conjugate_gradients_find_the_least_squares_scene(compat: Any) -> None:
    patterns = Patterns(2 * random(60, ROWS, COLUMNS) - 1, display="signed")
    ours = compat.as_physics(
        patterns, bitlens.GaussianNoise(0.1), scene_shape=(1, ROWS, COLUMNS), generator=generator()
    )
    measured = ours(random(2, 1, ROWS, COLUMNS))
    found = ours.A_dagger(measured, solver="CG", max_iter=500, tol=1e-7)
    matrix = matrix_of(patterns, (1, ROWS, COLUMNS))
    expected = torch.linalg.lstsq(matrix, measured.flatten(1).double().T).solution.T
    torch.testing.assert_close(found.flatten(1).double(), expected, rtol=2e-4, atol=2e-4)


def test_proximal_gradient_algorithm_finds_the_ridge_solution(compat: Any) -> None:
    pytest.importorskip("deepinv")
    optim = importlib.import_module("deepinv.optim")
    encoder = PSFConvolution(PSF)
    ours = compat.as_physics(encoder, scene_shape=(1, ROWS, COLUMNS))
    measured = ours(random(2, 1, ROWS, COLUMNS))
    weight = 0.1
    solver = optim.PGD(
        data_fidelity=optim.L2(),
        prior=optim.Tikhonov(),
        lambda_reg=weight,
        stepsize=1.0,
        max_iter=400,
        early_stop=False,
    )
    found = solver(measured, ours)
    matrix = matrix_of(encoder, (1, ROWS, COLUMNS))
    normal = matrix.T @ matrix + weight * torch.eye(matrix.shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(normal, matrix.T @ measured.flatten(1).double().T).T
    torch.testing.assert_close(found.flatten(1).double(), expected, rtol=1e-4, atol=1e-4)


def test_plug_and_play_and_total_variation_restore_a_blurred_edge(compat: Any) -> None:
    deepinv = pytest.importorskip("deepinv")
    optim = deepinv.optim
    encoder = PSFConvolution(torch.full((3, 3), 1 / 9))
    ours = compat.as_physics(encoder, bitlens.GaussianNoise(0.02), generator=generator())
    scene = torch.zeros(1, 1, 32, 32)
    scene[..., 8:24, 10:20] = 1
    measured = ours(scene)
    plug_and_play = optim.optim_builder(
        "PGD",
        prior=optim.PnP(deepinv.models.MedianFilter(kernel_size=3)),
        data_fidelity=optim.L2(),
        max_iter=50,
        params_algo={"stepsize": 1.0, "g_param": 0.02},
    )
    variation = optim.FISTA(
        data_fidelity=optim.L2(), prior=optim.TVPrior(n_it_max=20), lambda_reg=0.01, stepsize=1.0, max_iter=50
    )
    blurred = float(((measured - scene) ** 2).mean())
    assert float(((plug_and_play(measured, ours) - scene) ** 2).mean()) < blurred / 2
    assert float(((variation(measured, ours) - scene) ** 2).mean()) < blurred / 10


def test_nonlinear_encoders_have_both_halves_of_the_jacobian(compat: Any, physics: Any) -> None:
    encoder = Intensity()
    ours = compat.as_physics(encoder, scene_shape=(1, ROWS, COLUMNS))
    assert not isinstance(ours, physics.LinearPhysics)
    scene, direction = random(1, 1, ROWS, COLUMNS), random(1, 1, ROWS, COLUMNS, seed=1)
    matrix = matrix_of(encoder.blur, (1, ROWS, COLUMNS))
    jacobian = 2 * (matrix @ scene.flatten().double())[:, None] * matrix
    flat = direction.flatten().double()
    torch.testing.assert_close(ours.A_vjp(scene, direction).flatten().double(), jacobian.T @ flat, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.A_jvp(scene, direction).flatten().double(), jacobian @ flat, rtol=1e-5, atol=1e-6)
    # deepinv calls the largest eigenvalue of J^T J the norm of a nonlinear operator.
    largest = torch.linalg.svdvals(jacobian)[0] ** 2
    torch.testing.assert_close(ours.compute_norm(scene).double(), largest, rtol=1e-3, atol=0)


def test_gradient_steps_on_deepinvs_data_fidelity_fit_a_nonlinear_measurement(compat: Any) -> None:
    pytest.importorskip("deepinv")
    fidelity = importlib.import_module("deepinv.optim").L2()
    ours = compat.as_physics(Intensity())
    measured = ours.A(0.5 + random(1, 1, ROWS, COLUMNS))
    scene = torch.ones(1, 1, ROWS, COLUMNS)
    first = float(fidelity(scene, measured, ours))
    for _ in range(1000):
        scene = scene - 0.1 * fidelity.grad(scene, measured, ours)
    assert float(fidelity(scene, measured, ours)) < 1e-3 * first


def test_ready_made_systems_become_physics(compat: Any, physics: Any) -> None:
    camera = systems.camera(scenes=random(4, 1, 64, 64))
    ours = compat.as_physics(camera, generator=generator())
    assert isinstance(camera.encoder, Camera)
    assert not isinstance(ours, physics.LinearPhysics)  # dark signal makes it affine
    assert ours.img_size == (1, 64, 64)
    # Solvers for linear operators take the rest without the dark signal, and its adjoint.
    assert isinstance(ours.linear_part, physics.LinearPhysics)
    dark = ours.A(torch.zeros_like(camera.scenes))
    assert float(dark.min()) > 0
    torch.testing.assert_close(ours.A(camera.scenes), ours.linear_part(camera.scenes) + dark)
    assert float(ours.linear_part.adjointness_test(num_samples=2)) < 2e-6
    assert set(ours.state_dict()) == {f"encoder.{name}" for name in camera.encoder.state_dict()} | {
        name for name in ours.state_dict() if name.startswith("noise_model.")
    }
    measured = ours(camera.scenes)
    torch.testing.assert_close(measured, camera.noise.sample(camera.encoder(camera.scenes), generator()))
    direction, weights = random(4, 1, 64, 64, seed=1), torch.randn(measured.shape, generator=generator(2))
    forwards = (ours.A_jvp(camera.scenes, direction) * weights).double().sum()
    backwards = (direction * ours.A_vjp(camera.scenes, weights)).double().sum()
    torch.testing.assert_close(forwards, backwards, rtol=1e-4, atol=0)
    scan = systems.mri(shape=(16, 16), n_scenes=4)
    assert float(compat.as_physics(scan).adjointness_test(num_samples=4)) < 2e-6


def test_every_system_becomes_a_physics_with_products_that_agree(compat: Any, physics: Any) -> None:
    checked = 0
    for name, (encoder, noise, scenes) in small_systems():
        wide = systems.ImagingSystem(encoder.double(), noise, scenes[:2].double())
        ours = compat.as_physics(wide, generator=generator())
        measured = ours(wide.scenes)
        assert torch.isfinite(measured).all(), name
        assert torch.equal(measured, ours.noise_model(encoder(wide.scenes), seed=generator().initial_seed())), name
        direction = torch.randn(wide.scenes.shape, generator=generator(1), dtype=torch.float64)
        weights = torch.randn(measured.shape, generator=generator(2), dtype=torch.float64)
        is_linear = isinstance(ours, physics.LinearPhysics)
        forwards = ours.A(direction) if is_linear else ours.A_jvp(wide.scenes, direction)
        backwards = ours.A_vjp(wide.scenes, weights)
        left, right = (forwards * weights).sum(), (direction * backwards).sum()
        assert abs(left - right) < 1e-9 * (forwards.norm() * weights.norm()), name
        checked += 1
    assert checked >= 16


def small_systems() -> Iterator[tuple[str, systems.ImagingSystem]]:
    """The small fast systems of the contract that all systems keep."""
    folder = Path(__file__).parent.parent / "systems"
    for path in (folder / "system_case.py", *sorted(folder.glob("cases_*.py"))):
        specification = importlib.util.spec_from_file_location(path.stem, path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules.setdefault(path.stem, module)  # the cases import system_case by name
        specification.loader.exec_module(module)
        for case in getattr(module, "CASES", ()):
            yield case.name, case.make(case.shapes[1], ())


def test_a_clone_has_an_encoder_of_its_own_and_a_conversion_has_the_same(compat: Any) -> None:
    encoder = PSFConvolution(PSF, learn=("psf",))
    ours = compat.as_physics(encoder, bitlens.PoissonGaussianNoise(read_std=1.0), generator=generator())
    copied = ours.clone()
    scene = random(1, 1, ROWS, COLUMNS)
    before = ours.A(scene).detach().clone()
    assert [id(p) for p in ours.parameters()] == [id(p) for p in encoder.parameters()]
    with torch.no_grad():
        encoder.psf.mul_(2)
    torch.testing.assert_close(ours.A(scene), 2 * before)
    torch.testing.assert_close(copied.A(scene), before)
    torch.testing.assert_close(copied.A_adjoint(copied.A(scene)), ours.A_adjoint(ours.A(scene)) / 4)


def test_the_product_with_the_jacobian_can_be_differentiated_or_leaves_no_graph(compat: Any) -> None:
    ours = compat.as_physics(Intensity())
    scene, weights = random(1, 1, ROWS, COLUMNS), random(1, 1, ROWS, COLUMNS, seed=1)
    assert not ours.A_vjp(scene, weights).requires_grad
    wide = ours.encoder.double()
    point = scene.double().requires_grad_()
    force = weights.double().requires_grad_()
    assert torch.autograd.gradcheck(ours.A_vjp, (point, force))
    with torch.no_grad():
        assert not ours.A_vjp(point, force).requires_grad
    assert wide.blur.psf.dtype == torch.float64


# ---- Noise for deepinv ----


@pytest.mark.parametrize(
    "noise",
    [
        bitlens.GaussianNoise(1.5),
        bitlens.GaussianNoise(torch.linspace(0.5, 2, ROWS * COLUMNS).reshape(1, ROWS, COLUMNS)),
        bitlens.PoissonNoise(),
        bitlens.PoissonGaussianNoise(gain=2.0, offset=10.0, read_std=1.5),
        bitlens.PoissonGaussianNoise(gain=0.5, offset=3.0, read_std=1.0, adc_bits=8),
    ],
    ids=["gaussian", "gaussian map", "poisson", "sensor", "adc"],
)
def test_noise_for_deepinv_has_the_moments_and_repeats(compat: Any, physics: Any, noise: Any) -> None:
    ours = compat.as_physics(lambda scene: scene, noise, generator=generator())
    assert isinstance(ours.noise_model, physics.NoiseModel)
    mean = 5 + 20 * random(1, 1, ROWS, COLUMNS).double()
    n = 20_000
    drawn = ours(mean.expand(n, 1, ROWS, COLUMNS), seed=3)
    assert torch.equal(drawn, ours(mean.expand(n, 1, ROWS, COLUMNS), seed=3))
    variance = noise.variance(mean)[0]
    # Largest of 30 normal deviates: 5 standard errors; of the variance, whose kurtosis excess is at most 1 / 5.
    assert ((drawn.mean(0) - noise.expected(mean)[0]).abs() < 5 * (variance / n).sqrt()).all()
    assert ((drawn.var(0) / variance - 1).abs() < 5 * math.sqrt(2.2 / n)).all()


def test_plain_noise_is_deepinvs_own_and_options_of_the_operator_pass(compat: Any, physics: Any) -> None:
    gaussian = compat.as_physics(Intensity(), bitlens.GaussianNoise(0.25)).noise_model
    assert type(gaussian) is physics.GaussianNoise
    assert float(gaussian.sigma) == 0.25
    assert type(compat.as_physics(Intensity(), bitlens.PoissonNoise()).noise_model) is physics.PoissonNoise
    assert type(compat.as_physics(Intensity()).noise_model) is physics.ZeroNoise
    learned = bitlens.GaussianNoise(nn.Parameter(torch.tensor(0.5)))
    ours = compat.as_physics(PSFConvolution(PSF), learned)
    ours(random(2, 1, ROWS, COLUMNS), mask=None).sum().backward()
    assert learned.std.grad is not None
    ours.update(sigma=3.0)
    assert float(learned.std.detach()) == 0.5


# ---- deepinv's noise for us ----


@pytest.mark.parametrize("gain", [0.03, 1.0, 4.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_poisson_gain_is_a_unit_of_mean_and_measurement(
    compat: Any, physics: Any, gain: float, normalize: bool
) -> None:
    theirs = physics.PoissonNoise(gain=gain, normalize=normalize, rng=generator())
    check_moments(compat, theirs, random(1, 1, ROWS, COLUMNS).double() * 10 + 2)
    converted = compat.noise_from_deepinv(theirs)
    measured = theirs(torch.full((50, 1, 2, 2), 7e4))
    converted.noise.check_measured(converted.measured(measured))
    with pytest.raises(ValueError, match="whole counts"):
        converted.noise.check_measured(converted.measured(torch.tensor([[0.3 * gain]])))


@pytest.mark.parametrize(("gain", "sigma"), [(0.25, 0.5), (4.0, 2.0), (2.0, 0.0), (0.0, 1.5)])
def test_poisson_gaussian_gain_is_a_unit_of_the_mean(compat: Any, physics: Any, gain: float, sigma: float) -> None:
    theirs = physics.PoissonGaussianNoise(gain=gain, sigma=sigma, rng=generator())
    check_moments(compat, theirs, random(1, 1, ROWS, COLUMNS).double() * 10 + 2)


def test_gaussian_noise_keeps_its_standard_deviation(compat: Any, physics: Any) -> None:
    check_moments(compat, physics.GaussianNoise(0.3, rng=generator()), random(1, 1, ROWS, COLUMNS).double() - 0.5)


def check_moments(compat: Any, theirs: Any, mean: Tensor) -> None:
    converted = compat.noise_from_deepinv(theirs)
    noise, mean_scale = converted.noise, converted.mean_scale
    n = 20_000
    drawn = converted.measured(theirs(mean.expand(n, *mean.shape[1:])))
    variance = noise.variance(mean_scale * mean)[0]
    assert ((drawn.mean(0) - noise.expected(mean_scale * mean)[0]).abs() < 5 * (variance / n).sqrt()).all()
    # The excess kurtosis of a count is one over its mean, of which the smallest here is 0.5.
    assert ((drawn.var(0) / variance - 1).abs() < 5 * math.sqrt(4 / n)).all()


def test_noise_that_has_no_counterpart_is_refused(compat: Any, physics: Any) -> None:
    for theirs in (physics.ZeroNoise(), physics.UniformNoise(0.1)):
        with pytest.raises(TypeError, match="noise_model: need deepinv's GaussianNoise"):
            compat.noise_from_deepinv(theirs)
    with pytest.raises(ValueError, match=r"noise_model\.sigma: need one number .*\(2,\)"):
        compat.noise_from_deepinv(physics.GaussianNoise(torch.ones(2)))
    with pytest.raises(ValueError, match=r"noise_model\.gain: need a number above 0"):
        compat.noise_from_deepinv(physics.PoissonNoise(-1.0))
    with pytest.raises(TypeError, match="physics: need a deepinv Physics, got PSFConvolution"):
        compat.as_encoder(PSFConvolution(PSF))
    with pytest.raises(TypeError, match="noise: need a noise model"):
        compat.as_physics(PSFConvolution(PSF), physics.GaussianNoise())
    with pytest.raises(TypeError, match="encoder: need a callable"):
        compat.as_physics(3)


# ---- deepinv's physics as encoders ----

SIDE = 4
THEIRS = ["blur", "blur by Fourier", "inpainting", "compressed sensing", "single pixel", "mri", "coils", "tomography"]


def their_physics(physics: Any, name: str, noise_model: Any) -> tuple[Any, tuple[int, int, int]]:
    image = (1, SIDE, SIDE)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0]).expand(SIDE, SIDE)
    torch.manual_seed(0)
    if name == "blur":
        made = physics.Blur(filter=PSF[None, None], padding="circular", noise_model=noise_model)
    elif name == "blur by Fourier":
        made = physics.BlurFFT(img_size=image, filter=PSF[None, None], noise_model=noise_model)
    elif name == "inpainting":
        made = physics.Inpainting(img_size=image, mask=mask[None], noise_model=noise_model)
    elif name == "compressed sensing":
        made = physics.CompressedSensing(m=10, img_size=image, rng=generator(), noise_model=noise_model)
    elif name == "single pixel":
        made = physics.SinglePixelCamera(m=10, img_size=image, rng=generator(), noise_model=noise_model)
    elif name == "mri":
        image = (2, SIDE, SIDE)
        made = physics.MRI(mask=mask, img_size=image, noise_model=noise_model)
    elif name == "coils":
        image = (2, SIDE, SIDE)
        coils = torch.complex(random(1, 2, SIDE, SIDE), random(1, 2, SIDE, SIDE, seed=1))
        made = physics.MultiCoilMRI(mask=mask, coil_maps=coils, img_size=image, noise_model=noise_model)
    else:
        made = physics.Tomography(angles=6, img_width=SIDE, normalize=False, noise_model=noise_model)
    return made, image


@pytest.mark.parametrize("name", THEIRS)
def test_information_of_a_deepinv_physics_brackets_the_closed_form(compat: Any, physics: Any, name: str) -> None:
    # Gaussian scenes through a linear map: 0.5 log2 det(I + A A^T / sigma^2) bits.
    sigma = 0.5
    made, shape = their_physics(physics, name, physics.GaussianNoise(sigma))
    scenes = torch.randn(1000, *shape, generator=generator(1))
    encoder, noise, scenes = compat.as_system(made, scenes)
    matrix = matrix_of(encoder, shape)
    truth = float(torch.logdet(torch.eye(len(matrix)).double() + matrix @ matrix.T / sigma**2)) / (2 * math.log(2))
    with torch.no_grad():
        mean = encoder(scenes)
    assert torch.equal(mean, encoder(scenes))  # the noise of the physics stays out
    found = bitlens.estimate_information(noise.sample(mean, generator(2)), noise, mean=mean, generator=generator(3))
    assert all(map(math.isfinite, found.confidence_interval_bits))
    assert found.upper_bits is not None
    assert found.upper_bits > truth - 3 * found.stderr_bits
    assert found.upper_bits < 1.1 * truth + 0.5
    if found.lower_bits is not None:
        assert found.lower_bits < truth + 3 * found.stderr_bits


def test_photon_counts_of_a_deepinv_physics_are_in_electrons(compat: Any, physics: Any) -> None:
    gain = 0.01
    made, shape = their_physics(physics, "blur", physics.PoissonNoise(gain=gain))
    scenes = random(600, *shape)
    encoder, noise, _ = compat.as_system(made, scenes)
    assert isinstance(noise, bitlens.PoissonNoise)
    mean = encoder(scenes)
    torch.testing.assert_close(mean, made.A(scenes) / gain)
    measured = compat.noise_from_deepinv(made.noise_model).measured(made(scenes))
    given = bitlens.conditional_entropy(noise, measured, mean=mean)
    alone = bitlens.conditional_entropy(noise, measured)
    assert alone.nats_per_pixel == pytest.approx(given.nats_per_pixel, abs=5 * (given.stderr + alone.stderr) + 1e-3)
    assert bitlens.estimate_information(measured, noise, mean=mean, generator=generator()).bits > 5


def test_negative_means_are_clipped_where_deepinv_clips_them(compat: Any, physics: Any) -> None:
    made = physics.Denoising(noise_model=physics.PoissonNoise(gain=0.5, clip_positive=True))
    encoder = compat.as_system(made, torch.ones(10, 1, 2, 2)).encoder
    assert torch.equal(encoder(torch.tensor([[[[-1.0, 2.0]]]])), torch.tensor([[[[0.0, 4.0]]]]))


def test_fisher_information_about_a_filter_is_the_linear_models(compat: Any, physics: Any) -> None:
    sigma = 0.5
    made, shape = their_physics(physics, "blur", physics.GaussianNoise(sigma))
    scene = random(1, *shape)
    encoder, noise, _ = compat.as_system(made, scene)
    found = bitlens.fisher_information(encoder, noise, ["physics.filter"], scene=scene)
    # The measurement is linear in the filter: its columns are the scene, shifted around, for a unit of each tap.
    columns = []
    for tap in range(9):
        unit = torch.zeros(1, 1, 9)
        unit[0, 0, tap] = 1
        columns.append(physics.Blur(filter=unit.reshape(1, 1, 3, 3), padding="circular").A(scene).flatten().double())
    jacobian = torch.stack(columns, dim=1)
    torch.testing.assert_close(found.information[0], jacobian.T @ jacobian / sigma**2, rtol=1e-5, atol=1e-5)


def test_loss_gradient_in_a_filter_climbs_the_closed_form(compat: Any, physics: Any) -> None:
    sigma = 0.5
    kernel = nn.Parameter(PSF[None, None].clone())
    made = physics.Blur(filter=kernel, padding="circular", noise_model=physics.GaussianNoise(sigma))
    scenes = torch.randn(3000, 1, SIDE, SIDE, generator=generator())
    encoder, noise, _ = compat.as_system(made, scenes)
    bitlens.InformationLoss(noise)(encoder(scenes)).backward()
    assert kernel.grad is not None

    def truth(taps: Tensor) -> Tensor:
        units = torch.eye(SIDE * SIDE, dtype=torch.float64).reshape(-1, 1, SIDE, SIDE)
        matrix = physics.Blur(filter=taps, padding="circular").A(units).flatten(1).T
        return -torch.logdet(torch.eye(len(matrix)).double() + matrix @ matrix.T / sigma**2) / (2 * math.log(2))

    expected = torch.func.grad(truth)(kernel.detach().double())
    assert float((kernel.grad.double() - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize(("name", "learn"), [("blur", ()), ("blur", ("filter",)), ("blur by Fourier", ("filter",))])
def test_a_deepinv_physics_is_designed_on_a_copy(compat: Any, physics: Any, name: str, learn: tuple[str, ...]) -> None:
    made, shape = their_physics(physics, name, physics.GaussianNoise(0.5, rng=generator()))
    scenes = torch.randn(400, *shape, generator=generator())
    before = made.filter.clone()
    result = bitlens.optimize_design(
        *compat.as_system(made, scenes, learn=learn),
        parameters=[*learn] or ["physics.filter"],
        constraints={"filter" if learn else "physics.filter": Energy(1 / 3, measure="rms")},
        n_steps=60,
        generator=generator(1),
    )
    assert torch.equal(made.filter, before)
    # Of all filters with sum of squares 1 those that pass every frequency alike carry the most from white scenes.
    best = 0.5 * SIDE**2 * math.log2(1 + 1 / 0.25)
    history = [step.objective_bits for step in result.history]
    assert result.after.bits > result.before.bits + 1
    assert history[-1] == pytest.approx(best, rel=0.05)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature:UserWarning")
def test_complex_and_stacked_measurements_become_real(compat: Any, physics: Any) -> None:
    sensing = physics.CompressedSensing(m=5, img_size=(1, SIDE, SIDE), dtype=torch.complex64, rng=generator())
    encoder = compat.as_encoder(sensing, complex_scenes=True)
    pair = random(2, 2, SIDE, SIDE)
    expected = sensing.A(torch.complex(pair[:, :1], pair[:, 1:]))
    torch.testing.assert_close(encoder(pair), torch.stack([expected.real, expected.imag], dim=-1).flatten(1))
    made, shape = their_physics(physics, "blur", None)
    stacked = compat.as_encoder(made.stack(physics.Denoising()), mean_scale=2.0)
    scene = random(3, *shape)
    torch.testing.assert_close(stacked(scene), 2 * torch.cat([made.A(scene).flatten(1), scene.flatten(1)], dim=1))


def test_learned_arguments_leave_the_physics_as_it_was(compat: Any, physics: Any) -> None:
    made, shape = their_physics(physics, "blur by Fourier", None)
    before = {name: value.clone() for name, value in made.named_buffers()}
    encoder = compat.as_encoder(made, learn=["filter"])
    scene = random(3, *shape)
    torch.testing.assert_close(encoder(scene), made.A(scene))
    with torch.no_grad():
        encoder.filter.copy_(encoder.filter.flip(-1))
    torch.testing.assert_close(encoder(scene), physics.BlurFFT(shape, PSF[None, None].flip(-1)).A(scene))
    for name, value in made.named_buffers():
        assert torch.equal(value, before[name])
        assert not value.requires_grad
    with pytest.raises(ValueError, match=r"learn: need arguments of BlurFFT.A .*\(filter\), got 'angle'"):
        compat.as_encoder(made, learn=["angle"])
