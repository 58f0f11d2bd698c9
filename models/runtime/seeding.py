"""Random numbers as a function of a text such as "seed/step/name".

Nothing is counted, so a run that goes on needs no stored state of a generator, and an image's numbers do not depend on
its place in a list. Python's own hash() would not do: it differs from one process to the next.

There are two digests, CRC-32 and SHA-256, and for the simulator the text's bytes themselves. One would be enough; they
stay because another one would change every result that was ever made with the same seed.
"""

import hashlib
import zlib

import numpy as np
import torch


def generator(key: str) -> torch.Generator:
    """The noise of a training step: seeded by the CRC-32 of the text.

    The numbers are drawn on the CPU, where they do not depend on the GPU's model.
    """
    seed = zlib.crc32(key.encode())
    return torch.Generator().manual_seed(seed)


def latent_generator(key: str) -> torch.Generator:
    """The noise of a sampled latent: seeded by 63 bits of the text's SHA-256, which is what torch takes.

    A file name that is not UTF-8 reaches Python as a text with lone surrogates, which "surrogatepass" encodes too.
    """
    text = key.encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(text).digest()
    seed = int.from_bytes(digest[:8]) >> 1
    return torch.Generator().manual_seed(seed)


def place_generator(key: str) -> np.random.Generator:
    """The places of crops and of inserted nodules: seeded by the CRC-32 of the text."""
    seed = zlib.crc32(key.encode())
    return np.random.default_rng(seed)


def augmentation_generator(key: str) -> np.random.Generator:
    """The changes of an augmented pair: seeded by 64 bits of the text's SHA-256."""
    digest = hashlib.sha256(key.encode()).digest()
    seed = int.from_bytes(digest[:8])
    return np.random.default_rng(seed)


def detail_generator(seed: int, name: str) -> np.random.Generator:
    """One named detail of a simulated patient, or of a scored image, independent of all other names."""
    name_bytes = name.encode()
    return np.random.default_rng([seed, *name_bytes])
