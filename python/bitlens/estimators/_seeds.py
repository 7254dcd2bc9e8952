"""From a caller's generator to one seed that repeats the result, and from that seed to one for each use."""

from __future__ import annotations

import hashlib
import secrets

import torch


def take_seed(generator: torch.Generator | None) -> int:
    """The seed with which a fresh generator repeats what is drawn for this call; one draw advances `generator`.

    None: a seed drawn from the system. A generator that nothing was drawn from: its own seed. Any other: a seed drawn
    from it, because its own would repeat a result that it did not give. Two calls with one generator differ.

    Raises:
        TypeError: not a torch.Generator.
    """
    if generator is None:
        return secrets.randbits(32)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: need a torch.Generator or None, got {type(generator).__name__}")
    seed = generator.initial_seed()
    untouched = torch.Generator(device=generator.device).manual_seed(seed)
    is_untouched = torch.equal(generator.get_state(), untouched.get_state())
    drawn = int(torch.randint(2**32, (), generator=generator, device=generator.device))
    return seed if is_untouched else drawn


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one use of `seed`: streams that share a seed would be copies of each other."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=4).digest(), "little")
