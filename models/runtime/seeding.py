"""Random numbers as a function of a text such as "seed/step/name".

Nothing is counted, so a run that goes on needs no stored state of a generator.
"""

import zlib

import torch


def generator(key: str) -> torch.Generator:
    """A generator on the CPU that gives the same numbers wherever and whenever it is made from the same text.

    The seed is the CRC-32 of the text. The numbers are drawn on the CPU, where they do not depend on the GPU's model.
    """
    # not Python's hash(), which differs from one process to the next
    return torch.Generator().manual_seed(zlib.crc32(key.encode()))
