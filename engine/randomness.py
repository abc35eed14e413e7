"""Randomness that is keyed by what it is for, never by which process draws it."""

from __future__ import annotations

import hashlib

import numpy as np


def key(*parts: int | str) -> int:
    """A number below 2**63 that depends on all the parts and on nothing else."""
    text = "/".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A fresh generator for this purpose: `generator(seed, "sample", epoch, index)`."""
    return np.random.Generator(np.random.Philox(key=key(*parts)))
