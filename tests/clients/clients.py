"""Every client by name; see `training.py` on what one is."""

from __future__ import annotations

from tests.clients import graphs, images, language, self_supervised, series
from tests.clients.training import Client

CLIENTS: dict[str, Client] = {
    **language.CLIENTS,
    **images.CLIENTS,
    **self_supervised.CLIENTS,
    **series.CLIENTS,
    **graphs.CLIENTS,
}
