"""Clients that see graphs: the ready models of PyTorch Geometric."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.clients.training import Client, Training, wrapped

NODES, EDGES, FEATURES, CLASSES = 20, 60, 8, 3


def graph() -> dict[str, Tensor]:
    return {
        "x": torch.randn(NODES, FEATURES),
        "edge_index": torch.randint(NODES, (2, EDGES)),
        "y": torch.randint(CLASSES, (NODES,)),
    }


def per_node(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(network(batch["x"], batch["edge_index"]), batch["y"])


def geometric(name: str, **options: Any) -> Training:
    network = getattr(importlib.import_module("torch_geometric.nn"), name)(FEATURES, 32, 2, CLASSES, **options)
    return wrapped(network, per_node, graph)


CLIENTS = {
    f"pyg/{name.lower()}": Client("torch_geometric.nn", "torch_geometric", partial(geometric, name, **options))
    for name, options in {"GCN": {}, "GraphSAGE": {}, "GIN": {}, "GAT": {"heads": 4}}.items()
}
