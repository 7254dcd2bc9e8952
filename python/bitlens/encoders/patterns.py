"""Single-pixel cameras: one detector collects the scene behind one pattern after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, final, get_args

import numpy as np
import torch
from torch import Tensor

from bitlens.encoders.detector import as_planes, as_values, hold, within
from bitlens.encoders.linear import LinearEncoder

Display = Literal["transmission", "signed", "differential"]
HadamardOrder = Literal["natural", "walsh", "cake_cutting"]

_RADIX = 64  # a product with a matrix this small costs less than the passes over memory that it saves


@final
class Patterns(LinearEncoder):
    """y[m] = sum_{r, c} patterns[m, r, c] scene[r, c], one number for each pattern shown.

    How they are shown: "transmission", values of 0 to 1, what a micromirror array does (0 and 1 at once, between by
    duration); "differential", values of -1 to 1, the positive part of each and then the negative one, which doubles
    the measurements (`pair_differences` subtracts them); "signed", -1 to 1 as they are, an ideal whose means can be
    negative. Differentiable in scene and patterns.

    Shapes: (batch, channel, row, column) -> (batch, channel, m, 1), or (batch, channel, 2 m, 1) where differential.

    Args:
        patterns: (m, row, column).
        display: see above.
        learn: "patterns", or nothing.

    Reference: Duarte et al. 2008, Single-pixel imaging via compressive sampling, doi:10.1109/MSP.2007.914730.
    """

    patterns: Tensor

    def __init__(
        self, patterns: Tensor | np.ndarray, *, display: Display = "transmission", learn: Sequence[str] = ()
    ) -> None:
        super().__init__()
        _check_choice("display", display, get_args(Display))
        self.display: Display = display
        value = as_values("patterns", patterns, "(m, row, column)", (3,))
        hold(self, {"patterns": within("patterns", value, *self._domain())}, learn)
        # A step in all pixels must not outshine a pattern that is open in few.
        open_share = float(value.abs().mean())
        self.parameter_scale: Mapping[str, float] = {"patterns": min(1.0, 2 * open_share) if open_share else 1.0}

    @property
    def parameter_domain(self) -> Mapping[str, tuple[float | None, float | None]]:
        """What an optimiser may reach, which depends on how the patterns are shown."""
        return {"patterns": self._domain()}

    def shown(self) -> Tensor:
        """What stands before the detector in turn: (m, row, column), or (2 m, row, column) where differential."""
        if self.display != "differential":
            return self.patterns
        parts = torch.stack((self.patterns.clamp(min=0), (-self.patterns).clamp(min=0)), dim=1)
        return parts.flatten(0, 1)

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The detector's signals (batch, channel, m, 1) of scenes (batch, channel, row, column)."""
        rows, columns = self.patterns.shape[1:]
        scene = as_planes("scene", scene, rows=rows, columns=columns)
        return (scene.flatten(-2) @ self.shown().to(scene.dtype).flatten(1).T).unsqueeze(-1)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The sum of what was shown, weighted by the signals: (batch, channel, row, column)."""
        shown = self.shown()
        measured = as_planes("measured", measured, rows=len(shown), columns=1)
        return (measured[..., 0] @ shown.to(measured.dtype).flatten(1)).unflatten(-1, shown.shape[1:])

    def _domain(self) -> tuple[float, float]:
        return (0.0 if self.display == "transmission" else -1.0), 1.0


@final
class HadamardPatterns(LinearEncoder):
    """y[m] = sum_{r, c} h_m[r, c] scene[r, c] for Hadamard patterns h, by a fast transform: O(N log N), no matrix.

    Order "natural" is Sylvester's, "walsh" by sign changes along the rows joined to one line, "cake_cutting" by the
    number of connected pieces. Shown as in `Patterns`: "transmission" (1 + h) / 2; "differential" (1 + h) / 2 and then
    (1 - h) / 2 of each; "signed" h. Of scenes without negative values the first two give no negative mean.

    Shapes: (batch, channel, row, column) -> (batch, channel, m, 1), or (batch, channel, 2 m, 1) where differential.

    Args:
        size: rows and columns, powers of two.
        n_patterns: the first m in this order; None for all of them, row column.

    Reference: Yu 2019, cake-cutting Hadamard basis sort, doi:10.3390/s19194122.
    """

    indices: Tensor

    def __init__(
        self,
        size: tuple[int, int],
        *,
        n_patterns: int | None = None,
        order: HadamardOrder = "walsh",
        display: Display = "transmission",
    ) -> None:
        super().__init__()
        _check_choice("display", display, get_args(Display))
        self.size = size
        self.display: Display = display
        self.register_buffer("indices", _first(hadamard_order(size, order), n_patterns))

    def A(self, scene: Tensor | np.ndarray) -> Tensor:
        """The detector's signals (batch, channel, m, 1) of scenes (batch, channel, row, column)."""
        scene = as_planes("scene", scene, rows=self.size[0], columns=self.size[1])
        spectrum = walsh_hadamard(scene.flatten(-2))
        signed = spectrum[..., self.indices]
        if self.display == "signed":
            return signed.unsqueeze(-1)
        total = spectrum[..., :1]
        parts = [total + signed] if self.display == "transmission" else [total + signed, total - signed]
        # Not negative for light that is not: rounding is monotone and the same for either sign, so that each signal,
        # added up in the order of the total, lies between minus it and it.
        return 0.5 * torch.stack(parts, dim=-1).flatten(-2).unsqueeze(-1)

    def A_adjoint(self, measured: Tensor | np.ndarray) -> Tensor:
        """The sum of what was shown, weighted by the signals: (batch, channel, row, column)."""
        pairs = self.display == "differential"
        measured = as_planes("measured", measured, rows=len(self.indices) * (2 if pairs else 1), columns=1)
        values = measured[..., 0]
        if self.display == "signed":
            weights, constant = values, None
        elif pairs:
            plus, minus = values.unflatten(-1, (-1, 2)).unbind(-1)
            weights, constant = 0.5 * (plus - minus), 0.5 * values.sum(dim=-1, keepdim=True)
        else:
            weights, constant = 0.5 * values, 0.5 * values.sum(dim=-1, keepdim=True)
        spectrum = weights.new_zeros((*weights.shape[:-1], self.size[0] * self.size[1]))
        back = walsh_hadamard(spectrum.index_copy(-1, self.indices, weights))
        return (back if constant is None else back + constant).unflatten(-1, self.size)

    def patterns(self) -> Tensor:
        """The patterns h (m, row, column) of +1 and -1, float64, in their order: m row column numbers."""
        n_pixels = self.size[0] * self.size[1]
        pixel = torch.arange(n_pixels, device=self.indices.device)
        common = self.indices[:, None] & pixel
        return (1 - 2 * _parity(common)).to(torch.float64).unflatten(-1, self.size)


def walsh_hadamard(values: Tensor) -> Tensor:
    """sum_j (-1)^popcount(i & j) values[..., j] for each i: the transform in natural order, its own inverse times 1/N.

    Raises:
        ValueError: the last axis is no power of two.

    Reference: Fino and Algazi 1976, doi:10.1109/TC.1976.1674569.
    """
    size = values.shape[-1] if values.ndim else 0
    _check_power_of_two("values", size)
    if size <= _RADIX:
        return values @ _sylvester(size, values)
    # H of N = a b is the Kronecker product of those of a and b.
    blocks = walsh_hadamard(values.unflatten(-1, (_RADIX, size // _RADIX)))
    return (_sylvester(_RADIX, values) @ blocks).flatten(-2)


def hadamard_order(size: tuple[int, int], order: HadamardOrder) -> Tensor:
    """Natural indices of all Hadamard patterns of `size` (rows, columns), sorted; see `HadamardPatterns`.

    Pattern i row-major is (-1)^popcount(i & pixel): an outer product of one function of the row and one of the column,
    whose pieces number (sign changes of the one + 1) (of the other + 1). Ties are in Walsh order.

    Raises:
        ValueError: sizes that are no powers of two, or an unknown order.
    """
    _check_choice("order", order, get_args(HadamardOrder))
    for length in size:
        _check_power_of_two("size", length)
    rows, columns = size
    natural = torch.arange(rows * columns)
    if order == "natural":
        return natural
    walsh = _sign_changes(rows * columns).argsort(stable=True)
    if order == "walsh":
        return walsh
    of_row, of_column = _sign_changes(rows)[walsh // columns], _sign_changes(columns)[walsh % columns]
    return walsh[((of_row + 1) * (of_column + 1)).argsort(stable=True)]


def random_patterns(
    n_patterns: int,
    size: tuple[int, int],
    *,
    kind: Literal["binary", "uniform"] = "binary",
    open_share: float = 0.5,
    generator: torch.Generator,
) -> Tensor:
    """(m, row, column) of the default dtype: 0 and 1 (with probability `open_share`), or uniform in 0 to 1.

    Raises:
        ValueError: no pattern, an unknown kind, or a share outside of 0 to 1.
    """
    _check_choice("kind", kind, ("binary", "uniform"))
    if n_patterns < 1:
        raise ValueError(f"n_patterns: need at least 1, got {n_patterns}")
    if not 0 <= open_share <= 1:
        raise ValueError(f"open_share: need 0 to 1, got {open_share}")
    values = torch.rand(n_patterns, *size, generator=generator)
    return values if kind == "uniform" else (values < open_share).to(values.dtype)


def pair_differences(measured: Tensor) -> Tensor:
    """First minus second of each differential pair: (..., 2 m, 1) -> (..., m, 1), the signals of signed patterns.

    Raises:
        ValueError: an odd number of measurements.
    """
    if measured.ndim < 2 or measured.shape[-2] % 2:
        raise ValueError(f"measured: need shape (..., 2 m, 1), got {tuple(measured.shape)}")
    plus, minus = measured.unflatten(-2, (-1, 2)).unbind(-2)
    return plus - minus


def _sylvester(size: int, like: Tensor) -> Tensor:
    index = torch.arange(size, device=like.device)
    return (1 - 2 * _parity(index[:, None] & index)).to(like.dtype)


def _parity(value: Tensor) -> Tensor:
    """Number of ones among the binary digits, modulo 2, of numbers below 2^62."""
    for shift in (32, 16, 8, 4, 2, 1):
        value = value ^ (value >> shift)
    return value & 1


def _sign_changes(size: int) -> Tensor:
    """Sign changes along the Hadamard function of each natural index: the inverse Gray code of its digits reversed."""
    index = torch.arange(size)
    reverse = torch.zeros_like(index)
    for bit in range(size.bit_length() - 1):
        reverse = (reverse << 1) | (index >> bit & 1)
    for shift in (32, 16, 8, 4, 2, 1):
        reverse = reverse ^ (reverse >> shift)
    return reverse


def _first(indices: Tensor, n_patterns: int | None) -> Tensor:
    if n_patterns is None:
        return indices
    if not 1 <= n_patterns <= len(indices):
        raise ValueError(f"n_patterns: need 1 to {len(indices)}, got {n_patterns}")
    return indices[:n_patterns].clone()


def _check_power_of_two(name: str, length: int) -> None:
    if length < 1 or length & (length - 1):
        raise ValueError(f"{name}: need a power of two, got {length}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: need one of {tuple(choices)}, got {value!r}")
