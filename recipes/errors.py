"""The one exception of the recipes."""

from __future__ import annotations


class RecipeError(Exception):
    """Something the user can put right; the message is one line and is all that gets printed."""
