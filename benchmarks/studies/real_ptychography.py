"""A recorded Fourier ptychographic stack against the forward model of the stated set-up.

    python benchmarks/studies/real_ptychography.py [--data FOLDER] [--out FOLDER] [--side N] [--steps N]

The edges of the pupil in the spectra of bright images show whether the LEDs stand where they are said to, against the
same array mirrored or turned. An object is fitted to the images of most LEDs; the residual is reported for those and
for LEDs that the fit never saw. (-P: this folder's coverage.py must not stand in for the package of that name.)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.io import loadmat
from torch import Tensor

from bitlens import report
from bitlens.report import Table
from bitlens.systems.fourier_ptychography import FourierPtychography

FILE = "fpm/bloodsmear_green.mat"
ROOT = Path(__file__).resolve().parents[2]
# As the file's description states them.
APERTURE, PIXEL_UM, PITCH_MM, HEIGHT_MM, GLASS_MM, GLASS_INDEX = 0.1, 1.845, 4.0, 90.88, 1.0, 1.52


class Recording(NamedTuple):
    """`amplitude` (LED, row, column), the root of the intensity, and where the light of each LED runs to."""

    amplitude: Tensor
    position_mm: Tensor
    wavelength_nm: float
    defocus_um: float


class Fit(NamedTuple):
    """The object (row, column), Zernike terms, and |modelled - measured| / |measured| of the amplitudes."""

    field: Tensor
    zernike_waves: Tensor
    modelled: Tensor
    by_led: Tensor
    fitted: float
    held_out: float
    start: float


def spiral(count: int) -> Tensor:
    """(count, 2) rows and columns of a square spiral from the middle: right, down, two left, two up, three right ..."""
    place, found, length, direction = [0, 0], [(0, 0)], 1, 0
    while len(found) < count:
        for _ in range(2):
            axis, sign = (direction + 1) % 2, 1 if direction % 4 < 2 else -1
            for _ in range(length):
                place[axis] += sign
                found.append((place[0], place[1]))
            direction += 1
        length += 1
    return torch.tensor(found[:count], dtype=torch.float64)


def sine_through_glass(offset_mm: Tensor) -> Tensor:
    """sin(theta) with offset = height tan(theta) + glass tan(theta'), sin(theta') = sin(theta) / index, by Newton."""
    sine = offset_mm / (offset_mm**2 + HEIGHT_MM**2).sqrt()
    for _ in range(5):
        air, glass = (1 - sine**2).sqrt(), (GLASS_INDEX**2 - sine**2).sqrt()
        miss = HEIGHT_MM * sine / air + GLASS_MM * sine / glass - offset_mm
        sine = sine - miss / (HEIGHT_MM / air**3 + GLASS_MM * GLASS_INDEX**2 / glass**3)
    return sine


def read(data: Path, side: int) -> Recording:
    """The stack of the `side` x `side` LEDs in the middle."""
    file = loadmat(data / FILE)
    turn, column_mm, row_mm = (float(file[name].item()) for name in ("theta", "xint", "yint"))
    place = spiral(side**2) * PITCH_MM + torch.tensor([row_mm, column_mm])
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    place = torch.stack((cosine * place[:, 0] + sine * place[:, 1], cosine * place[:, 1] - sine * place[:, 0]), dim=1)
    radius = place.norm(dim=1, keepdim=True)
    angle = sine_through_glass(radius)
    # Light runs away from the LED; the tangent makes it a position at the stated height without glass.
    position = -place / radius.clamp(min=1e-9) * HEIGHT_MM * angle / (1 - angle**2).sqrt()
    amplitude = torch.from_numpy(np.moveaxis(file["imlow_HDR"], -1, 0)[: side**2].astype(np.float32))
    return Recording(amplitude, position, 1e9 * file["wlength"].item(), 1e6 * float(file["z"].item()))


def edge_step(recording: Recording, position_mm: Tensor) -> float:
    """Mean log spectrum of bright images just inside the pupil's two circles, less that just outside, in nats.

    A bright image's spectrum is what interferes with the direct light: that within the pupil shifted by k and by -k.
    """
    amplitude = recording.amplitude.double()
    frequency = torch.fft.fftfreq(amplitude.shape[-1], PIXEL_UM, dtype=torch.float64)
    row, column = frequency[:, None], frequency[None, :]
    radius = 1e3 * APERTURE / recording.wavelength_nm
    sine = position_mm / ((position_mm**2).sum(dim=1, keepdim=True) + HEIGHT_MM**2).sqrt()
    steps = []
    for image, (down, across) in zip(amplitude, 1e3 * sine / recording.wavelength_nm, strict=True):
        if image.mean() < 0.5 or torch.hypot(down, across) < 0.2 * radius:
            continue
        distance = torch.minimum(torch.hypot(row - down, column - across), torch.hypot(row + down, column + across))
        level = (torch.fft.fft2(image).abs() + 1e-3).log()
        inside = (distance > 0.85 * radius) & (distance < 0.96 * radius)
        outside = (distance > 1.04 * radius) & (distance < 1.15 * radius)
        steps.append(float(level[inside].mean() - level[outside].mean()))
    return sum(steps) / len(steps)


ORIENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "as stated": lambda position: position,
    "rows mirrored": lambda position: position * torch.tensor([-1.0, 1.0]),
    "rows and columns swapped": lambda position: position.flip(1),
    "turned by a quarter": lambda position: position.flip(1) * torch.tensor([-1.0, 1.0]),
}


def fit(recording: Recording, *, n_steps: int, free_pupil: bool, learning_rate: float = 0.05, hold_out: int = 6) -> Fit:
    """Adam on the squared difference of amplitudes of all LEDs but every `hold_out`-th, from the mean bright image.

    With a free pupil, eight Zernike terms (Noll 4 to 11) are fitted too.
    """
    amplitude = recording.amplitude
    count = len(amplitude)
    reach = float((recording.position_mm / (recording.position_mm**2 + HEIGHT_MM**2).sqrt()).abs().max())
    upsampling = math.ceil(2e3 * PIXEL_UM * (reach + APERTURE) / recording.wavelength_nm)
    encoder = FourierPtychography(
        wavelength_nm=recording.wavelength_nm,
        numerical_aperture=APERTURE,
        object_pixel_um=PIXEL_UM,
        led_position_mm=recording.position_mm,
        led_height_mm=HEIGHT_MM,
        defocus_um=recording.defocus_um,
        zernike_waves=dict.fromkeys(range(4, 12), 0.0),
        photons=float(count),
        upsampling=upsampling,
        learn=("zernike_waves",) if free_pupil else (),
    )
    held_out = torch.arange(count) % hold_out == hold_out - 2
    start = torch.nn.functional.interpolate(amplitude[:9].mean(0)[None, None], scale_factor=upsampling, mode="bicubic")
    field = torch.cat((start, torch.zeros_like(start)), dim=1).requires_grad_()
    groups = [{"params": [field]}, {"params": list(encoder.parameters()), "lr": 0.2 * learning_rate}]
    optimizer = torch.optim.Adam(groups[: 1 + free_pupil], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)

    def modelled() -> Tensor:
        # The floor keeps the root's slope finite where nothing arrives.
        return (encoder(field)[0] + 1e-6).sqrt()

    def residual(model: Tensor, which: Tensor) -> float:
        return float((model - amplitude)[which].norm() / amplitude[which].norm())

    first = residual(modelled().detach(), ~held_out)
    for _ in range(n_steps):
        optimizer.zero_grad()
        ((modelled() - amplitude)[~held_out] ** 2).sum().backward()
        optimizer.step()
        schedule.step()
    final = modelled().detach()
    by_led = (final - amplitude).flatten(1).norm(dim=1) / amplitude.flatten(1).norm(dim=1)
    result = torch.complex(field[0, 0], field[0, 1]).detach()
    return Fit(
        result,
        encoder.zernike_waves.detach(),
        final,
        by_led,
        residual(final, ~held_out),
        residual(final, held_out),
        first,
    )


def picture(recording: Recording, found: Fit) -> Figure:
    """The object, the middle image measured and modelled, an unseen LED's image both ways, residuals of all LEDs."""
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(2, 4)
    axes[0, 0].imshow(found.field.abs(), cmap="gray")
    axes[0, 0].set(title="object, amplitude")
    axes[1, 0].imshow(found.field.angle(), cmap="twilight")
    axes[1, 0].set(title="object, phase")
    for column, led, name in ((1, 0, "middle LED"), (2, 10, "unseen LED")):
        high = float(recording.amplitude[led].max())
        for line, image, kind in ((0, recording.amplitude[led], "measured"), (1, found.modelled[led], "modelled")):
            axes[line, column].imshow(image, cmap="gray", vmin=0, vmax=high)
            axes[line, column].set(title=f"{name}, {kind}")
    for line, values, title in (
        (0, recording.amplitude.mean(dim=(1, 2)).log10(), "log10 of mean amplitude, measured"),
        (1, found.by_led, "relative residual of amplitude"),
    ):
        x, y = recording.position_mm[:, 1], recording.position_mm[:, 0]
        dots = axes[line, 3].scatter(x, y, c=values, cmap="viridis", s=60)
        figure.colorbar(dots, ax=axes[line, 3])
        axes[line, 3].set(title=title, xlabel="mm", ylabel="mm", aspect="equal")
        axes[line, 3].invert_yaxis()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the real data")
    parser.add_argument("--out", type=Path, default=Path("studies_out"), help="folder for figures and JSON")
    parser.add_argument("--side", type=int, default=5, help="LEDs per side of the square in the middle, odd, up to 15")
    parser.add_argument("--steps", type=int, default=120, help="steps of each fit")
    arguments = parser.parse_args()
    if not (arguments.data / FILE).is_file():
        print(f"ptychography: skipped, no data at {arguments.data / FILE}")
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    recording = read(arguments.data, arguments.side)
    edges = {name: edge_step(recording, orient(recording.position_mm)) for name, orient in ORIENTATIONS.items()}
    table = Table(
        "", ("LED array", "step at the pupil's edges, nats"), tuple((n, f"{e:.2f}") for n, e in edges.items())
    )
    print(report.to_text(table))
    steps = arguments.steps
    fits = {
        "as stated": fit(recording, n_steps=steps, free_pupil=False),
        "as stated, pupil fitted": fit(recording, n_steps=steps, free_pupil=True),
    }
    rows = [(name, f"{f.start:.3f}", f"{f.fitted:.3f}", f"{f.held_out:.3f}") for name, f in fits.items()]
    columns = ("model", "start", "fitted LEDs", "unseen LEDs")
    print(f"relative residual of the amplitude\n{report.to_text(Table('', columns, tuple(rows)))}")
    (arguments.out / "ptychography.png").write_bytes(report.to_png(picture(recording, fits["as stated, pupil fitted"])))
    fields = {
        name: {
            "start": f.start,
            "fitted": f.fitted,
            "held_out": f.held_out,
            "zernike_4_to_11": f.zernike_waves.tolist(),
        }
        for name, f in fits.items()
    }
    (arguments.out / "ptychography.json").write_text(
        json.dumps({"edges": edges, "fits": fields}, indent=2, allow_nan=False)
    )


if __name__ == "__main__":
    main()
