"""What the tools take on their command lines."""

import argparse


def positive(text: str) -> int:
    """A number of steps, samples or pixels, as argparse reads it: 1 or more."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 or more")
    return int(text)
