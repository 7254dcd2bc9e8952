"""Which numbers of an encoder and a noise model may change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn


class Choice(NamedTuple):
    """`learned` by name, and those that required gradients but stay as they are."""

    learned: dict[str, nn.Parameter]
    frozen: list[Tensor]


def choose_parameters(encoder: Callable[[Tensor], Tensor], noise: nn.Module, names: Sequence[str] | None) -> Choice:
    """The parameters that change, by the names the caller gave or their dotted names; all others are frozen.

    A name is that of a parameter or of a buffer of real numbers, which then becomes a parameter, in the encoder or in
    the noise; "encoder." or "noise." in front says which where both have it.

    Raises:
        TypeError: names that are not a sequence of strings.
        ValueError: nothing to change, a name that is unknown, ambiguous or given twice.
    """
    modules = {"encoder": encoder, "noise": noise}
    found = {
        f"{owner}.{name}": value
        for owner, module in modules.items()
        if isinstance(module, nn.Module)
        for name, value in (*module.named_parameters(), *module.named_buffers())
        if value.dtype.is_floating_point
    }
    learned = {name for name, value in found.items() if isinstance(value, nn.Parameter) and value.requires_grad}
    if names is None:
        if not learned:
            raise ValueError(
                "parameters: need at least one that requires grad in encoder or noise, or names of what may change; "
                f"there are {_listed(found)}"
            )
        chosen = {_shortest(name, found): name for name in found if name in learned}
    else:
        chosen = _by_names(names, found)
    for present in found.values():
        if isinstance(present, nn.Parameter):
            present.requires_grad_(False)
    result: dict[str, nn.Parameter] = {}
    for given, full in chosen.items():
        owner, _, name = full.partition(".")
        module = modules[owner]
        assert isinstance(module, nn.Module)
        parameter = _as_parameter(module, name)
        parameter.requires_grad_(True)
        result[given] = parameter
    frozen = [found[name] for name in sorted(learned - set(chosen.values()))]
    return Choice(result, frozen)


def _by_names(names: Sequence[str], found: dict[str, Tensor]) -> dict[str, str]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"parameters: need a sequence of names, got {names!r}")
    if not names:
        raise ValueError("parameters: need at least one name, got none")
    chosen: dict[str, str] = {}
    for name in names:
        matches = [full for full in found if full == name or full.partition(".")[2] == name]
        if len(matches) != 1:
            problem = "unknown" if not matches else "ambiguous"
            hint = f"there are {_listed(found)}" if not matches else f"use one of {', '.join(matches)}"
            raise ValueError(f"parameters: {name!r} is {problem}; {hint}")
        if matches[0] in chosen.values():
            raise ValueError(f"parameters: {name!r} is given twice")
        chosen[name] = matches[0]
    return chosen


def _shortest(full: str, found: dict[str, Tensor]) -> str:
    bare = full.partition(".")[2]
    return bare if sum(other.partition(".")[2] == bare for other in found) == 1 else full


def _listed(found: dict[str, Tensor]) -> str:
    return ", ".join(_shortest(name, found) for name in found) or "none"


def _as_parameter(module: nn.Module, name: str) -> nn.Parameter:
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    value: Any = {**owner._parameters, **owner._buffers}[last]  # not what a module may make of it in its attribute
    if isinstance(value, nn.Parameter):
        return value
    delattr(owner, last)
    parameter = nn.Parameter(value.detach().clone())
    owner.register_parameter(last, parameter)
    return parameter


def domains(
    encoder: Callable[[Tensor], Tensor], noise: nn.Module, learned: dict[str, nn.Parameter]
) -> dict[str, tuple[float | None, float | None]]:
    """Lower and upper end of each learned parameter, where its module states them in `parameter_domain`."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for owner in (encoder, noise):
        for module in owner.modules() if isinstance(owner, nn.Module) else ():
            for attribute, ends in getattr(module, "parameter_domain", {}).items():
                value = getattr(module, attribute, None)
                found |= {name: ends for name, parameter in learned.items() if parameter is value}
    return found


def without_domain(
    encoder: Callable[[Tensor], Tensor], noise: nn.Module, learned: dict[str, nn.Parameter]
) -> list[str]:
    """Learned parameters of modules that state no `parameter_domain` at all."""
    modules = [module for owner in (encoder, noise) if isinstance(owner, nn.Module) for module in owner.modules()]
    silent = [
        value for module in modules if not hasattr(module, "parameter_domain") for value in module._parameters.values()
    ]
    return [name for name, parameter in learned.items() if any(parameter is value for value in silent)]


def scales(encoder: Callable[[Tensor], Tensor], noise: nn.Module, learned: dict[str, nn.Parameter]) -> dict[str, float]:
    """What counts as a large change of each learned parameter: its module's `parameter_scale`, else 1."""
    found = dict.fromkeys(learned, 1.0)
    for owner in (encoder, noise):
        for module in owner.modules() if isinstance(owner, nn.Module) else ():
            for attribute, scale in getattr(module, "parameter_scale", {}).items():
                value = getattr(module, attribute, None)
                found |= {name: float(scale) for name, parameter in learned.items() if parameter is value}
    return found


def learning_rates(
    given: float | Mapping[str, float] | None, first_step: float, scales: Mapping[str, float]
) -> dict[str, float]:
    """Of each parameter in its own unit: by name as given, else one number, `first_step` for None, in its scale.

    Raises:
        ValueError: an unknown or a missing name, or a rate that is not a positive number.
    """
    if isinstance(given, Mapping):
        check_names("learning_rate", given, scales)
        missing = [name for name in scales if name not in given]
        if missing:
            raise ValueError(f"learning_rate: need one for each parameter, got none for {missing[0]!r}")
        rates = {name: float(given[name]) for name in scales}
    else:
        share = first_step if given is None else float(given)
        rates = {name: share * scale for name, scale in scales.items()}
    for name, rate in rates.items():
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"learning_rate: need a number above 0 for {name!r}, got {rate}")
    return rates


def check_names(argument: str, given: Iterable[str], learned: Iterable[str]) -> None:
    """ValueError for a name that is not among what may change."""
    known = list(learned)
    for name in given:
        if name not in known:
            raise ValueError(f"{argument}: {name!r} is not among what may change: {', '.join(known)}")


def copy_of(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Detached copies of the present values."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}
