"""`fisher_information`: how well a measurement tells parameters of scene or optics, and which it cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitlens.estimators._fisher_pixel import information_per_pixel
from bitlens.noise import NoiseModel
from bitlens.noise._abilities import ChecksMean

# Singular values of the Jacobian over the largest one, every parameter in the unit of its own bound: what rounding
# leaves of a zero, and below what the bound of a combination of parameters is 1e4 times that of the best one.
_ZERO = {torch.float64: 1e-11, torch.float32: 1e-5}
_NEARLY_ZERO = 1e-4
_MOST_ELEMENTS = 2**25  # of a Jacobian that is held at once
_MOST_NAMED = 6  # parameters that a direction names
_LEAST_NAMED = 0.05

_Function = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True)
class FisherInformation:
    """Fisher information about p parameters and what it bounds; float64, a batch in front where there was one.

    `information` (..., p, p), with the prior's precision when `bayesian`; `covariance_bound` (..., p, p) and
    `standard_deviation_bound` (..., p): no unbiased estimator (with a prior: none at all) does better; infinite, and
    NaN off the diagonal, for what cannot be identified. The rest is about the measurement alone, whatever the prior,
    with every parameter in the unit of the bound it has when the others are known: `eigenvalues` (..., p) ascending,
    `directions` (..., p, p) their columns, `condition_number` (...), `rank` (...) the directions told from zero.
    `unidentified` puts the others into words, those of the first of a batch that has any.
    """

    names: tuple[str, ...]
    information: Tensor
    covariance_bound: Tensor
    standard_deviation_bound: Tensor
    eigenvalues: Tensor
    directions: Tensor
    condition_number: Tensor
    rank: Tensor
    unidentified: tuple[str, ...]
    bayesian: bool
    warnings: tuple[str, ...]


def fisher_information(
    encoder: Callable[..., Tensor] | nn.Module,
    noise: NoiseModel,
    parameters: Tensor | NDArray[Any] | Sequence[float] | Sequence[str],
    *,
    scene: Tensor | NDArray[Any] | None = None,
    names: Sequence[str] | None = None,
    prior_covariance: Tensor | NDArray[Any] | None = None,
    average: bool = False,
    differentiation: Literal["auto", "forward", "reverse"] = "auto",
    chunk_size: int | None = None,
) -> FisherInformation:
    """sum over pixels of J(mean) (d mean / d parameters)^T (d mean / d parameters), and the Cramer-Rao bounds.

    Args:
        parameters: values (p,) or (batch, p), each vector `encoder`'s argument; or, with `scene` (batch, ...), names of
            parameters or buffers of the module `encoder`, at the values they have.
        names: of the values, for words. prior_covariance: (p, p) of a Gaussian prior; van Trees' bound is that of
            `average` over (batch, p) draws from the prior.
        average: one matrix, the mean over the batch. chunk_size: rows or columns of the Jacobian made at a time.
        differentiation: "forward" p times, "reverse" once a pixel; "auto" is the cheaper one.

    Raises: TypeError, ValueError: an argument that cannot be used, named, or means that the noise does not allow.

    Reference: Kay 1993, Fundamentals of Statistical Signal Processing, eqs. 3.20 and 3.31; Van Trees 1968, section 2.4.
    """
    if not isinstance(noise, NoiseModel):
        raise TypeError(f"noise: need a noise model such as bitlens.GaussianNoise, got {type(noise).__name__}")
    if differentiation not in ("auto", "forward", "reverse"):
        raise ValueError(f"differentiation: need 'auto', 'forward' or 'reverse', got {differentiation!r}")
    if chunk_size is not None and (isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size: need a whole number of at least 1 or None, got {chunk_size!r}")
    problem = _problem(encoder, parameters, scene, names)
    roots, zero = [], 0.0
    for function, point in problem.parts:
        found, precision = _roots(function, point, noise, differentiation, chunk_size)
        roots.append(found)
        zero = max(zero, _ZERO[precision])
    root = torch.cat(roots)
    if average:
        root = _triangle(root.reshape(-1, root.shape[-1]) / math.sqrt(len(root)))[None]
    prior_root = None if prior_covariance is None else _prior_root(prior_covariance, root)
    result = _result(problem.names, root, prior_root, zero)
    return result if problem.batched and not average else _first(result)


# ---- What is differentiated ----


class _Problem(NamedTuple):
    """Functions from a vector (p,) to means (scenes, ...), each with the vector it is differentiated at."""

    names: tuple[str, ...]
    parts: Iterator[tuple[Callable[[int, int], _Function], tuple[Tensor, int]]]
    batched: bool


def _problem(encoder: object, parameters: object, scene: object, names: Sequence[str] | None) -> _Problem:
    if not callable(encoder):
        raise TypeError(f"encoder: need a callable or a module, got {type(encoder).__name__}")
    if isinstance(parameters, str):
        raise TypeError(f"parameters: need values or a sequence of names, got the text {parameters!r}")
    is_named = isinstance(parameters, Sequence) and len(parameters) > 0 and isinstance(parameters[0], str)
    if is_named:
        if names is not None:
            raise ValueError("names: `parameters` has the names already, need None")
        return _of_module(encoder, cast(Sequence[str], parameters), scene)
    if scene is not None:
        raise ValueError("scene: goes with names in `parameters`; an encoder of values takes nothing else, need None")
    values = _real("parameters", parameters)
    if values.ndim not in (1, 2) or values.numel() == 0:
        raise ValueError(f"parameters: need shape (p,) or (batch, p), none of them 0, got {tuple(values.shape)}")
    labels = tuple(f"parameters[{index}]" for index in range(values.shape[-1])) if names is None else tuple(names)
    if len(labels) != values.shape[-1]:
        raise ValueError(f"names: need one for each of {values.shape[-1]} parameters, got {len(labels)}")

    def function(begin: int, end: int) -> _Function:
        return lambda vector: _mean(encoder(vector))[None]

    vectors = values.reshape(-1, values.shape[-1])
    return _Problem(labels, ((function, (vector, 1)) for vector in vectors), values.ndim == 2)


def _of_module(encoder: object, wanted: Sequence[str], scene: object) -> _Problem:
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder: need a module to find parameters by name, got {type(encoder).__name__}")
    if scene is None:
        raise ValueError("scene: need scenes (batch, ...) when `parameters` has names, got None")
    there = {**dict(encoder.named_buffers()), **dict(encoder.named_parameters())}
    there = {name: value.detach() for name, value in there.items() if value.is_floating_point()}
    for name in wanted:
        if name not in there:
            raise ValueError(f"parameters: {name!r} is unknown; there are {', '.join(sorted(there)) or 'none'}")
    if len(set(wanted)) != len(wanted):
        raise ValueError(f"parameters: need every name once, got {', '.join(wanted)}")
    values = [there[name] for name in wanted]
    dtype = values[0].dtype
    for value in values[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    vector = torch.cat([value.reshape(-1).to(dtype) for value in values])
    scenes = _real("scene", scene).to(vector.device)
    if scenes.ndim == 0 or scenes.shape[0] == 0:
        raise ValueError(f"scene: need scenes (batch, ...), got shape {tuple(scenes.shape)}")
    sizes = [value.numel() for value in values]

    def function(begin: int, end: int) -> _Function:
        def call(point: Tensor) -> Tensor:
            pieces = zip(point.split(sizes), values, strict=True)
            replaced = {
                name: piece.reshape(value.shape).to(value.dtype)
                for name, (piece, value) in zip(wanted, pieces, strict=True)
            }
            found = _mean(torch.func.functional_call(encoder, replaced, (scenes[begin:end],)))
            if found.ndim == 0 or found.shape[0] != end - begin:
                raise ValueError(
                    f"encoder: need one mean for each of {end - begin} scenes in front, got {tuple(found.shape)}"
                )
            return found

        return call

    labels = tuple(label for name, value in zip(wanted, values, strict=True) for label in _labels(name, value))
    return _Problem(labels, iter([(function, (vector, scenes.shape[0]))]), True)


def _labels(name: str, value: Tensor) -> list[str]:
    if value.numel() == 1:
        return [name]
    return [f"{name}[{', '.join(map(str, index))}]" for index in np.ndindex(*value.shape)]


def _real(name: str, value: object) -> Tensor:
    try:
        # Through NumPy, plain numbers keep their double precision.
        tensor = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: need an array of real numbers, got {type(value).__name__}") from error
    if tensor.is_complex():
        raise TypeError(f"{name}: need real numbers, got complex ones")
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.to(torch.float64)
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name}: need finite values, got NaN or infinity")
    return tensor


def _mean(value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        what = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"encoder: need means as a float32 or float64 tensor, got {what}")
    return value


# ---- Roots R of the information R^T R, from the weighted Jacobian ----


def _roots(
    function: Callable[[int, int], _Function],
    at: tuple[Tensor, int],
    noise: NoiseModel,
    differentiation: str,
    chunk_size: int | None,
) -> tuple[Tensor, torch.dtype]:
    """(scenes, p, p) triangles, float64, and the coarser precision of parameters and means."""
    point, n_scenes = at
    n_parameters = point.numel()
    with torch.no_grad():
        n_pixels = function(0, 1)(point).numel()
    if n_pixels == 0:
        raise ValueError("encoder: need means of at least one pixel, got none")
    reverse = differentiation == "reverse" or (differentiation == "auto" and n_pixels < n_parameters)
    step = 1 if reverse else max(1, _MOST_ELEMENTS // (n_parameters * n_pixels))
    found, precision = [], point.dtype
    for begin in range(0, n_scenes, step):
        part = function(begin, min(begin + step, n_scenes))
        with torch.no_grad():
            mean = part(point)
        if mean.dtype == torch.float32:
            precision = torch.float32
        if isinstance(noise, ChecksMean):
            noise.check_mean(mean)
        weight = information_per_pixel(noise, mean).reshape(mean.shape[0], -1)
        make = _by_pixel if reverse else _by_parameter
        found.append(make(part, point, weight, chunk_size))
    return torch.cat(found), precision


def _by_parameter(function: _Function, point: Tensor, weight: Tensor, chunk_size: int | None) -> Tensor:
    def column(tangent: Tensor) -> Tensor:
        return torch.func.jvp(function, (point,), (tangent,))[1].reshape(weight.shape)

    unit = torch.eye(point.numel(), dtype=point.dtype, device=point.device)
    jacobian = torch.func.vmap(column, chunk_size=chunk_size or _default_chunk(weight.numel()))(unit)
    return _triangle(_weighted(jacobian.detach().permute(1, 2, 0), weight))


def _by_pixel(function: _Function, point: Tensor, weight: Tensor, chunk_size: int | None) -> Tensor:
    mean, pull_back = torch.func.vjp(function, point)[:2]
    n_pixels = mean.numel()
    step = chunk_size or _default_chunk(max(n_pixels, point.numel()))
    root = weight.new_zeros(1, 0, point.numel())
    for begin in range(0, n_pixels, step):
        index = torch.arange(begin, min(begin + step, n_pixels), device=point.device)
        unit = torch.zeros(len(index), n_pixels, dtype=mean.dtype, device=mean.device)
        unit[torch.arange(len(index)), index] = 1.0
        rows = torch.func.vmap(lambda one: pull_back(one.reshape(mean.shape))[0])(unit).detach()
        root = _triangle(torch.cat([root, _weighted(rows[None], weight[:, index])], dim=1))
    return root


def _default_chunk(elements: int) -> int:
    return max(1, 2**23 // max(elements, 1))


def _weighted(jacobian: Tensor, weight: Tensor) -> Tensor:
    """Rows times sqrt(J); a pixel that no parameter moves tells nothing, even one without light and noise."""
    jacobian = jacobian.to(torch.float64)
    if not bool(torch.isfinite(jacobian).all()):
        raise ValueError("encoder: need finite derivatives by the parameters, got NaN or infinity")
    weight = torch.where((jacobian != 0).any(dim=-1), weight, torch.zeros_like(weight))
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(
            "encoder: means of 0 that a parameter moves have infinite information without read noise; "
            "need a dark floor above 0 or a noise model with read noise"
        )
    return torch.sqrt(weight)[..., None] * jacobian


def _triangle(rows: Tensor) -> Tensor:
    """R (..., p, p) with R^T R = rows^T rows, without squaring the condition number."""
    missing = rows.shape[-1] - rows.shape[-2]
    if missing > 0:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, missing))
    return torch.linalg.qr(rows, mode="r").R


# ---- Bounds ----


def _prior_root(prior_covariance: object, root: Tensor) -> Tensor:
    covariance = _real("prior_covariance", prior_covariance).to(root)
    n_parameters = root.shape[-1]
    if covariance.shape != (n_parameters, n_parameters):
        raise ValueError(
            f"prior_covariance: need shape ({n_parameters}, {n_parameters}), got {tuple(covariance.shape)}"
        )
    asymmetry = float((covariance - covariance.T).abs().max())
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if asymmetry > 1e-9 * float(covariance.abs().max()) or int(failed) != 0:
        raise ValueError("prior_covariance: need a symmetric positive definite matrix")
    return torch.linalg.solve_triangular(factor, torch.eye(n_parameters).to(root), upper=False)


def _scaled_svd(root: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Norms of the columns, (..., p), and singular values, ascending, and vectors of the columns over them."""
    scale = torch.linalg.vector_norm(root, dim=-2)
    divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
    found = torch.linalg.svd(root / divisor[..., None, :])
    return divisor, found.S.flip(-1), found.Vh.mT.flip(-1)


def _result(names: tuple[str, ...], root: Tensor, prior_root: Tensor | None, zero: float) -> FisherInformation:
    _, values, directions = _scaled_svd(root)
    largest = values[..., -1:]
    lost = values <= zero * largest
    total = root
    if prior_root is not None:
        total = _triangle(torch.cat([root, prior_root.expand_as(root)], dim=-2))
    scale, singular, vectors = _scaled_svd(total)
    gone = lost if prior_root is None else torch.zeros_like(lost)
    inverse = torch.where(gone, torch.zeros_like(singular), 1.0 / torch.where(gone, 1.0, singular))
    half = vectors * inverse[..., None, :] / scale[..., :, None]
    covariance = half @ half.mT
    # A parameter that takes part in a lost direction is lost; rounding mixes others in by far less than this.
    share = torch.where(gone[..., None, :], vectors, torch.zeros_like(vectors)).abs().amax(-1)
    unknown = share > math.sqrt(zero)
    either = unknown[..., :, None] | unknown[..., None, :]
    covariance = torch.where(either, torch.nan, covariance)
    covariance = torch.where(torch.diag_embed(unknown), torch.inf, covariance)
    words, warnings = _in_words(names, values, directions, lost, prior_root is not None)
    condition = torch.where(lost.any(-1), torch.inf, (largest / values[..., :1]).square()[..., 0])
    return FisherInformation(
        names=names,
        information=total.mT @ total,
        covariance_bound=covariance,
        standard_deviation_bound=torch.sqrt(covariance.diagonal(dim1=-2, dim2=-1)),
        eigenvalues=values.square(),
        directions=directions,
        condition_number=condition,
        rank=(~lost).sum(-1),
        unidentified=words,
        bayesian=prior_root is not None,
        warnings=warnings,
    )


def _in_words(
    names: tuple[str, ...], values: Tensor, directions: Tensor, lost: Tensor, has_prior: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    nearly = ~lost & (values < _NEARLY_ZERO * values[..., -1:])
    warnings = []
    words: list[str] = []
    for mask, what in ((lost, "cannot be identified"), (nearly, "can hardly be identified")):
        affected = torch.nonzero(mask.any(-1))[:, 0].tolist()
        if not affected:
            continue
        scene = affected[0]
        found = [_direction(names, directions[scene, :, i]) for i in torch.nonzero(mask[scene])[:, 0].tolist()]
        where = "" if len(mask) == 1 else f" in {len(affected)} of {len(mask)} of the batch, first at {scene}"
        note = f"{len(found)} of {len(names)} directions {what} from the measurement{where}: {'; '.join(found)}"
        if mask is nearly:
            note += f" (the bound of the worst is over {1 / _NEARLY_ZERO:.0e} times that of the best direction)"
        elif has_prior:
            note += ". What is known of them is the prior"
        warnings.append(note)
        words += found if mask is lost else []
    return tuple(words), tuple(warnings)


def _direction(names: tuple[str, ...], vector: Tensor) -> str:
    order = torch.argsort(vector.abs(), descending=True, stable=True).tolist()
    chosen = [index for index in order[:_MOST_NAMED] if abs(float(vector[index])) >= _LEAST_NAMED]
    if len(chosen) == 1 and abs(float(vector[chosen[0]])) > 1 - 1e-6:
        return names[chosen[0]]
    sign = math.copysign(1.0, float(vector[chosen[0]])) if chosen else 1.0
    parts = [f"{sign * float(vector[index]):+.2f} {names[index]}" for index in chosen]
    more = "" if len(chosen) == int((vector.abs() >= _LEAST_NAMED).sum()) and chosen else " and more"
    return f"{' '.join(parts)}{more}"


def _first(result: FisherInformation) -> FisherInformation:
    return replace(
        result,
        information=result.information[0],
        covariance_bound=result.covariance_bound[0],
        standard_deviation_bound=result.standard_deviation_bound[0],
        eigenvalues=result.eigenvalues[0],
        directions=result.directions[0],
        condition_number=result.condition_number[0],
        rank=result.rank[0],
    )
