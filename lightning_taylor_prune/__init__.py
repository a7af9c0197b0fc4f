"""Structured Taylor pruning of any PyTorch network, as a Lightning callback."""

from lightning_taylor_prune.callbacks.pruning import TaylorPruningCallback
from lightning_taylor_prune.callbacks.recovery import Recovery
from lightning_taylor_prune.cost import Cost, measure_cost, measure_latency
from lightning_taylor_prune.criteria import Criterion, register_criterion
from lightning_taylor_prune.errors import (
    ArgumentError,
    PlanError,
    PruningError,
    PruningWarning,
    TraceError,
    VerificationError,
)
from lightning_taylor_prune.groups import ChannelGroup, ChannelGroups, find_groups
from lightning_taylor_prune.labels.rules import register_rule
from lightning_taylor_prune.latency import LatencyTable
from lightning_taylor_prune.modules.updates import register_module_update
from lightning_taylor_prune.plan import Cut, PruningPlan
from lightning_taylor_prune.pruning.loading import fit_checkpoint_, load_pruned, make_loadable
from lightning_taylor_prune.pruning.loading_block import loading_pruned
from lightning_taylor_prune.pruning.outcome import PruneOutcome
from lightning_taylor_prune.pruning.prune import prune_
from lightning_taylor_prune.pruning.pruner import Pruner
from lightning_taylor_prune.pruning.select import select
from lightning_taylor_prune.pruning.sensitivity import Sensitivities, sensitivity
from lightning_taylor_prune.pruning.stop import StopReason
from lightning_taylor_prune.recovery import DistillationLoss, Teacher
from lightning_taylor_prune.report.inspection import Inspection, inspect

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "ChannelGroup",
    "ChannelGroups",
    "Cost",
    "Criterion",
    "Cut",
    "DistillationLoss",
    "Inspection",
    "LatencyTable",
    "PlanError",
    "PruneOutcome",
    "Pruner",
    "PruningError",
    "PruningPlan",
    "PruningWarning",
    "Recovery",
    "Sensitivities",
    "StopReason",
    "TaylorPruningCallback",
    "Teacher",
    "TraceError",
    "VerificationError",
    "find_groups",
    "fit_checkpoint_",
    "inspect",
    "load_pruned",
    "loading_pruned",
    "make_loadable",
    "measure_cost",
    "measure_latency",
    "prune_",
    "register_criterion",
    "register_module_update",
    "register_rule",
    "select",
    "sensitivity",
]
