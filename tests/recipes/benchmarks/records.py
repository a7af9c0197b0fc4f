"""Reading what a coverage run wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def record_of(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / f"{name.replace('/', '.')}.json").read_text())
