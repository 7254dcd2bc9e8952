"""Likelihood, entropy and moments of a digitised or saturating sensor, with scalar parameters or per-pixel maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitlens import ops
from bitlens.noise import _codes, _entropy
from bitlens.noise._codes import Setting
from bitlens.noise.base import operand

ENTROPY, EXPECTED, VARIANCE = range(3)
LARGEST_MEAN = _codes.LARGEST_MEAN
# Read noise in ADU from which rounding is one more source of noise: codes ripple by 2 exp(-2 pi^2 read_std^2).
_SMOOTH = 0.75


class Parameters:
    """gain, offset, read_std and full well (infinite for none) as operands of a kernel, and the ADC."""

    def __init__(self, mean: Tensor, values: tuple[Tensor, Tensor, Tensor, Tensor | None], adc_bits: int | None):
        gain, offset, read_std, full_well = values
        self.gain, self.offset, self.read_std = (operand(value, mean) for value in (gain, offset, read_std))
        self.full_well = mean.new_tensor(math.inf) if full_well is None else operand(full_well, mean)
        self.adc_bits = adc_bits
        if adc_bits is not None:
            least = _codes.LEAST_READ_STD * self.gain.detach().clamp(min=1.0)
            self.read_std = torch.maximum(self.read_std, least.to(self.read_std))

    @property
    def top(self) -> float:
        """The largest code."""
        return math.inf if self.adc_bits is None else float(2**self.adc_bits - 1)

    @property
    def scalar(self) -> bool:
        """Whether all pixels have one sensor."""
        return all(value.numel() == 1 for value in (self.gain, self.offset, self.read_std, self.full_well))

    def setting(self) -> Setting:
        """The one sensor of all pixels."""
        gain, offset, read_std, well = (
            float(v.detach()) for v in (self.gain, self.offset, self.read_std, self.full_well)
        )
        return Setting(gain, offset, read_std, self.adc_bits, well)


def log_prob(measured: Tensor, mean: Tensor, sensor: Parameters) -> Tensor:
    """log of the mass of a code, -inf for what is not a code; without an ADC of the density."""
    keywords = {
        "gain": sensor.gain,
        "offset": sensor.offset,
        "read_std": sensor.read_std,
        "full_well_electrons": sensor.full_well,
    }
    if sensor.adc_bits is None:
        return ops.poisson_gaussian_bin_log_prob(measured, mean, below=0.0, above=0.0, **keywords)
    if sensor.adc_bits > 24 and measured.dtype != torch.float64:
        raise ValueError(
            f"measured: need float64 for codes of more than 24 bits, got {str(measured.dtype).removeprefix('torch.')}"
            f" with adc_bits={sensor.adc_bits}"
        )
    code = is_code(measured, sensor.adc_bits)
    measured = torch.where(code, measured, torch.where(torch.isnan(measured), measured, torch.zeros_like(measured)))
    below, above = _codes.bins(measured, sensor.adc_bits)
    value = ops.poisson_gaussian_bin_log_prob(measured, mean, below=below, above=above, **keywords)
    return torch.where(code | torch.isnan(value), value, torch.full_like(value, -torch.inf))


def is_code(measured: Tensor, adc_bits: int) -> Tensor:
    """Whether each value is one of 0 .. 2**adc_bits - 1."""
    return (measured >= 0) & (measured <= 2**adc_bits - 1) & (measured == torch.round(measured))


def output_of(analogue: Tensor, adc_bits: int | None) -> Tensor:
    """What the sensor reports for an analogue value in ADU."""
    return analogue if adc_bits is None else torch.round(analogue).clamp(0, 2**adc_bits - 1)


def quantity(which: int, mean: Tensor, sensor: Parameters) -> Tensor:
    """ENTROPY (nats), EXPECTED (ADU) or VARIANCE (ADU^2) of the output; NaN for a negative mean."""
    shape = torch.broadcast_shapes(*(t.shape for t in (mean, sensor.gain, sensor.offset, sensor.read_std)))
    y = mean.clamp(min=0.0)
    if sensor.scalar:
        value = _one_sensor(which, y, sensor)
    else:
        value = _each_pixel(which, y, sensor)
    value = value.to(mean.dtype).expand(torch.broadcast_shapes(shape, value.shape))
    return torch.where(mean >= 0, value, torch.full_like(value, torch.nan))


def _one_sensor(which: int, y: Tensor, sensor: Parameters) -> Tensor:
    setting = sensor.setting()
    parameters = (sensor.gain, sensor.offset, sensor.read_std)
    if sensor.adc_bits is not None or setting.shoulder_mean <= 0:
        return _codes.interpolate(setting, which, y, parameters)
    gain, offset, read_std = (p.to(torch.float64).reshape(()) for p in parameters)
    below = _unlimited(which, y.to(torch.float64), gain, offset, read_std, 0.0)
    # The table of a well of 1e8 electrons takes a minute, and most images never come near the well.
    if not torch._C._functorch.is_functorch_wrapped_tensor(y) and bool((y.detach() < setting.shoulder_mean).all()):
        return below
    return torch.where(y < setting.shoulder_mean, below, _codes.interpolate(setting, which, y, parameters))


def _unlimited(which: int, y: Tensor, gain: Tensor, offset: Tensor, read_std: Tensor, rounding: float) -> Tensor:
    """Far from both ends of the scale; `rounding` is the variance that rounding adds."""
    if which == EXPECTED:
        return gain * y + offset
    variance = read_std**2 + rounding
    if which == VARIANCE:
        return gain**2 * y + variance
    return _entropy.poisson_gaussian_entropy(y, torch.sqrt(variance) / gain) + torch.log(gain)


def _each_pixel(which: int, mean: Tensor, sensor: Parameters) -> Tensor:
    tensors = (mean, sensor.gain, sensor.offset, sensor.read_std, sensor.full_well)
    wide = torch.broadcast_tensors(*(t.to(torch.float64) for t in tensors))
    shape = wide[0].shape
    y, gain, offset, read_std, well = (t.reshape(-1) for t in wide)
    rounding = 0.0 if sensor.adc_bits is None else 1 / 12
    with torch.no_grad():
        free = y + 10 * torch.sqrt(y) + 40 < well
        if sensor.adc_bits is not None:
            # Ten standard deviations, and what the skewness of few electrons adds.
            reach = 10 * torch.sqrt(gain**2 * y + read_std**2) + 15 * gain + 1
            middle = gain * y + offset
            free &= (read_std > _SMOOTH) & (middle + reach < sensor.top) & (offset - 10 * read_std > 0)
        summed = torch.nonzero(~free)[:, 0]
        columns = (t[summed].cpu().numpy() for t in (y, gain, offset, read_std, well))
        area = _codes.support(*columns, adc_bits=sensor.adc_bits)
    # Where little light and read noise have no closed form, nor a derivative that zero could be multiplied with.
    bright = torch.where(free, y, torch.ones_like(y))
    result = _unlimited(which, bright, gain, offset, read_std, rounding)
    for rows in _codes.rows_of_like_size(area.number):
        place = summed[torch.from_numpy(rows).to(summed.device)]
        one = Parameters(y, (gain[place, None], offset[place, None], read_std[place, None], well[place, None]), None)
        one.adc_bits = sensor.adc_bits
        values, weight = (torch.from_numpy(v).to(y.device) for v in area.points(rows, sensor.top))
        below, above = _codes.bins(values, sensor.adc_bits)
        keywords = {"below": below, "above": above, "full_well_electrons": one.full_well, "read_std": one.read_std}
        keywords["gain"] = one.gain
        # Without light d log p / d mean overflows: the slope is added at the end.
        light = y[place, None]
        dark = light == 0
        light = torch.where(dark, torch.zeros_like(light), light)
        log_p = ops.poisson_gaussian_bin_log_prob(values, light, offset=one.offset, **keywords)
        p = torch.exp(log_p) * weight
        if which == ENTROPY:
            total = -(p * torch.where(p > 0, log_p, 0.0)).sum(dim=1)
        else:
            total = (p * values).sum(dim=1) / p.sum(dim=1)
            if which == VARIANCE:
                total = (p * (values - total.detach()[:, None]) ** 2).sum(dim=1)
        if y.requires_grad and bool(dark.any()):
            with torch.no_grad():
                electron = one.gain * one.full_well.clamp(max=1.0)
                lit = ops.poisson_gaussian_bin_log_prob(values, light, offset=one.offset + electron, **keywords)
                flow = torch.exp(lit) * weight - p
                if which == ENTROPY:
                    slope = -(flow * log_p.clamp(min=_codes.LEAST_DARK_LOG_P)).sum(dim=1)
                else:
                    expected = (p * values).sum(dim=1) / p.sum(dim=1)
                    slope = (flow * (values - expected[:, None]) ** (1 if which == EXPECTED else 2)).sum(dim=1)
            total = total + torch.where(dark[:, 0], y[place] * slope, torch.zeros_like(total))
        result = result.index_put((place,), total)
    return result.reshape(shape)
