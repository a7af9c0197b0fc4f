"""Fill in the templates of pages; all that is filled in is escaped.

Needs ``pip install lightning-taylor-prune[report]``.
"""

from __future__ import annotations

from lightning_taylor_prune.errors import missing_package
from lightning_taylor_prune.report import words

try:
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as error:
    raise missing_package("The page of a report needs", "jinja2", "lightning-taylor-prune[report]") from error


def render_template(name: str, **values: object) -> str:
    """Return a template of this package with its values; templates find :mod:`~.report.words` as ``words``."""
    environment = Environment(
        loader=PackageLoader("lightning_taylor_prune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(words=words, **values)
