"""Mistake: a learned critic that is too small, or that has too few samples. Its bound then lies far below the truth.

    python examples/critic_too_small.py [--out picture.png]

A critic scores pairs (x, z) by f(x) . g(z). The better the scores and the more pairs it compares, the higher the bound.
The pairs here are Gaussian, so that what they share is known: 6 bits.
"""

import argparse
import math

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import bitlens

TRUTH_BITS, N_COORDINATES = 6.0, 4


def pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    correlation = math.sqrt(1 - 4 ** (-TRUTH_BITS / N_COORDINATES))
    x, other = torch.randn(2, n, N_COORDINATES, generator=generator)
    return x, correlation * x + math.sqrt(1 - correlation**2) * other


def network(hidden: int, n_features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(N_COORDINATES, hidden), nn.SiLU(), nn.Linear(hidden, n_features))


def trained(hidden: int, n_features: int, n_training: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    f, g = network(hidden, n_features), network(hidden, n_features)
    optimizer = torch.optim.Adam([*f.parameters(), *g.parameters()], lr=1e-2)
    x, z = pairs(n_training, seed=1)
    for _ in range(200):
        chosen = torch.randperm(n_training)[:256]
        optimizer.zero_grad()
        loss(f(x[chosen]), g(z[chosen])).backward()
        optimizer.step()
    return f, g


def bits(critic: tuple[nn.Module, nn.Module], x: Tensor, z: Tensor) -> float:
    f, g = critic
    with torch.no_grad():
        return float(loss.value(f(x), g(z))) / math.log(2)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", help="file for a picture")
arguments = parser.parse_args()
torch.set_num_threads(1)
loss = bitlens.losses.InfoNCE()
print(f"truth: {TRUTH_BITS} bits; bitlens says: InfoNCE is a {loss.bound} bound")

large = trained(hidden=64, n_features=32, n_training=10_000)
starved = trained(hidden=64, n_features=32, n_training=100)
rows = {
    "mistake: one feature": (trained(hidden=64, n_features=1, n_training=10_000), pairs(2000, seed=2)),
    "mistake: 16 pairs compared": (large, pairs(16, seed=2)),
    "mistake: scored on the 100 pairs it was trained on": (starved, pairs(100, seed=1)),
    "mistake: 100 pairs to train on": (starved, pairs(2000, seed=2)),
    "right: 32 features, 10000 pairs to train on, 2000 new ones": (large, pairs(2000, seed=2)),
}
values = {name: bits(critic, *scored) for name, (critic, scored) in rows.items()}
for name, (_, (x, z)) in rows.items():
    ceiling = loss.ceiling_nats(len(x), len(z))
    print(f"{name}: {values[name]:.2f} bits; bitlens says: at most {ceiling / math.log(2):.2f}")

# `estimate_mutual_information` trains, stops and scores on pairs of their own, and says when they are few.
estimate = bitlens.estimate_mutual_information(
    *pairs(70, seed=1), method="infonce", n_refits=1, generator=torch.Generator().manual_seed(1)
)
print(f"estimate of 70 pairs: {estimate.bits:.2f} +- {estimate.stderr_bits:.2f} bits ({estimate.bound})")
for warning in estimate.warnings:
    print(f"  bitlens says: {warning}")

if arguments.out:
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(list(values), [max(value, 0.0) for value in values.values()])
    axes.axvline(TRUTH_BITS, color="k", linestyle=":", label="truth")
    axes.set_xlabel("bits (below 0 drawn as 0)")
    axes.legend(frameon=False)
    figure.savefig(arguments.out)
