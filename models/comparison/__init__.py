"""The methods that the papers' tables compare with, and the next generation: a network a file."""

from .base import METHODS, Translator, build, find

__all__ = ("METHODS", "Translator", "build", "find")
