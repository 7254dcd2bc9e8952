"""Mistake: a noise model that is not the sensor's. The estimate moves by many bits; exposures of still scenes tell.

    python examples/wrong_noise_model.py [--out picture.png]

Whatever noise the model lacks is counted as information, and whatever it has too much is taken off.
"""

import argparse

import torch
from matplotlib.figure import Figure

import bitlens
from bitlens.datasets import scene_patches


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", help="file for a picture")
arguments = parser.parse_args()
torch.set_num_threads(1)

# The sensor as it is: 2 grey values (ADU) per electron, 6 ADU of read noise, a black level of 100 ADU.
sensor = bitlens.PoissonGaussianNoise(gain=2.0, offset=100.0, read_std=6.0)
camera = bitlens.systems.camera(photons=100, margin_pixels=4).encoder
scenes = scene_patches(500, camera.scene_size(6), generator=seed(0)).scenes
with torch.no_grad():
    mean = camera(scenes).double()
measured = sensor.sample(mean, seed(1))

# 50 exposures of each of 8 still scenes, from the darkest to the brightest: no truth is needed for these.
still = mean[mean.mean(dim=(1, 2, 3)).argsort()[:: len(mean) // 8][:8]]
repeats = sensor.sample(still[:, None].expand(-1, 50, -1, -1, -1), seed(2))

models = {
    "mistake: gain 1 instead of 2": bitlens.PoissonGaussianNoise(gain=1.0, offset=100.0, read_std=6.0),
    "mistake: read noise 2 instead of 6": bitlens.PoissonGaussianNoise(gain=2.0, offset=100.0, read_std=2.0),
    "right": sensor,
}
bits = {}
for name, noise in models.items():
    # Only the last argument makes the mistake visible: the same images without it give the same bits and no warning.
    estimate = bitlens.estimate_information(measured, noise, repeats=repeats, generator=seed(3))
    bits[name] = estimate.bits, estimate.stderr_bits
    print(f"{name}: {estimate.bits:.1f} +- {estimate.stderr_bits:.1f} bits per image ({estimate.bound})")
    for warning in estimate.warnings:
        print(f"  bitlens says: {warning}")

# What to do about it: ask the darkest scene alone, whose noise is the read noise, or calibrate from flats and darks.
darkest = repeats[0, :, 0]
for name, noise in models.items():
    check = bitlens.check_noise(noise, darkest)
    shift = check.information_shift
    print(f"{name}, darkest scene: fits: {check.fits}; variance {check.dispersion:.2f} of that predicted")
    for finding in check.findings:
        print(f"  bitlens says: {finding}")
print(f"5 % more gain moves the estimate by {shift.gain:+.3f} bits per pixel, read noise by {shift.read_std:+.3f}")

if arguments.out:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(bits), [value for value, _ in bits.values()], xerr=[error for _, error in bits.values()])
    axes.set_xlabel("bits per image")
    figure.savefig(arguments.out)
