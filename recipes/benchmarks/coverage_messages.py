"""What an error or a warning says, without what depends on the machine."""

from __future__ import annotations

import os
import re
import traceback
from typing import Any


def describe(error: BaseException) -> dict[str, Any]:
    """Return what an error says and where it comes from, paths cut short."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{shorten(f.filename)}:{f.lineno} {f.name}" for f in frames]
    cause = error.__cause__
    record: dict[str, Any] = {"error": shorten(f"{type(error).__name__}: {error}")[:2000], "where": places[-6:]}
    if cause is not None:
        inner = traceback.extract_tb(cause.__traceback__)
        record["cause_where"] = [f"{shorten(f.filename)}:{f.lineno} {f.name}" for f in inner][-12:]
    return record


def shorten(text: str) -> str:
    """Drop the part of paths that depends on the machine."""
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
    return re.sub(r"/[^\s:,()`]*?/site-packages/", "", text).replace(here, "")
