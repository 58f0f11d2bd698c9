"""What the scripts share (README, "The tree")."""

from .runtime.files import UserError as UserError
