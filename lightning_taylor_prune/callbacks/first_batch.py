"""Learn how a training step calls its network: from the first batch, and from what later ones do otherwise."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from lightning_taylor_prune.callbacks.calls_of_ranks import (
    answered_by_first_rank,
    calls_of_all_ranks,
    submodules_of_first_rank,
)
from lightning_taylor_prune.errors import TraceError
from lightning_taylor_prune.groups.find import groups_of_network, groups_with_calls
from lightning_taylor_prune.groups.groups import ChannelGroups
from lightning_taylor_prune.modules.likeness import Twin, likely_twins
from lightning_taylor_prune.pruning.original import OriginalNetwork
from lightning_taylor_prune.pruning.ranks import Ranks
from lightning_taylor_prune.tracing.call import Call, current_autocast, tree_fake
from lightning_taylor_prune.tracing.capture import CallRecorder, is_module_name
from lightning_taylor_prune.tracing.fakes import FakeMode
from lightning_taylor_prune.tracing.submodules import TraceableSubmodules

_STEP = "training_step"

_MOST_ANALYSES = 6
"""How often new ways of calling the network start the analysis anew, before it is left at what is known."""


class FirstBatchRecorder:
    """Records how the first batch calls the network, and what later batches do otherwise, until it is closed.

    Args:
        target: Name of the submodule to look into, or ``None`` for whatever the training step calls.
    """

    def __init__(self, target: str | None) -> None:
        self._target = target
        self._recorder: CallRecorder | None = None
        self._step: Call | None = None
        self._known: frozenset[str] | None = None
        self._by_step = False
        self._analyses = 0
        self._new_steps: list[Call] = []
        self._news_so_far = 0

    def begin(self, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record from now on, if that is not so already, and note what the training step is called with."""
        if self._recorder is None:
            self._recorder = CallRecorder(pl_module, self._target, self._known)
        if self._target is None and pl_module.automatic_optimization:
            self._step = _training_step(pl_module, batch, batch_idx)
            self._recorder.note_uses_outside(_STEP)

    def end_forward(self) -> None:
        """Note that the loss is computed: what follows uses parameters in its own ways."""
        if self._recorder is None:
            return
        self._recorder.stop_noting_outside()
        if self._step is not None and self._recorder.news and self._news_so_far != len(self._recorder.news):
            self._news_so_far = len(self._recorder.news)
            self._new_steps.append(self._step)

    def close(self) -> None:
        """Remove the hooks; what was seen so far is known when it begins again."""
        if self._recorder is not None:
            self._known = self._recorder.known
            self._recorder.close()
        self._recorder = self._step = None
        self._forget_news()

    def forget(self) -> None:
        """Begin anew, with another network."""
        self.close()
        self._known, self._by_step, self._analyses = None, False, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that is resumed before the first prune must know of the calls before, as plain data."""
        known = self._known if self._recorder is None else self._recorder.known
        return {"known": None if known is None else sorted(known), "analyses": self._analyses}

    def _go_on(self, state: Mapping[str, Any], groups: ChannelGroups, by_step: bool) -> None:
        """Look out for what the run before the checkpoint has not seen, and for what its calls do not show now."""
        self._by_step, self._analyses = by_step, state["analyses"]
        known = frozenset(state["known"] or ()) - modules_not_shown(groups, state["known"] or ())
        if self._recorder is None:
            self._known = known
        else:
            self._recorder.settle(known)
            self._forget_news()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Record nothing in here."""
        with contextlib.nullcontext() if self._recorder is None else self._recorder.paused():
            yield

    def _forget_news(self) -> None:
        self._new_steps, self._news_so_far = [], 0

    def news_of_this_rank(self, ranks: Ranks | None) -> list[Call]:
        """Return calls of kinds that no batch before had, or that ran other modules, if this rank is alone.

        Ranks may see other paths at other times: they look at them together, see :meth:`news_of_all_ranks`.
        """
        return self._news if ranks is not None and ranks.count == 1 else []

    def news_of_all_ranks(self, pl_module: LightningModule, ranks: Ranks | None) -> list[Call]:
        """Return the new calls of all ranks together, before the first prune.

        Raises:
            PruningError: A rank has calls that cannot be sent to the others.
        """
        return calls_of_all_ranks(self._news, pl_module, ranks) if ranks is not None else []

    @property
    def _news(self) -> list[Call]:
        if self._recorder is None or not self._recorder.news or self._analyses >= _MOST_ANALYSES:
            return []
        return self._new_steps if self._by_step else self._recorder.news

    def analyse(
        self,
        pl_module: LightningModule,
        ranks: Ranks,
        rewrite_hard_coded: bool,
        resumed: Mapping[str, Any],
        calls: Sequence[Call] | None,
        so_far: ChannelGroups | None = None,
    ) -> tuple[ChannelGroups, OriginalNetwork]:
        """Find the groups of the network as it is now, and what it was before its first prune.

        Args:
            pl_module: The module.
            ranks: The ranks of the job.
            rewrite_hard_coded: As in :func:`~lightning_taylor_prune.groups.find.find_groups`.
            resumed: The callback's state in a checkpoint; empty where training begins. The groups are then those
                that the network had before its first prune, less what was removed.
            calls: How the network is called, where that is known without a first batch; further calls, if it has been
                analysed already.
            so_far: Groups of the network, which is unpruned, over other calls.

        Raises:
            MisconfigurationException: No call was seen.
            TraceError: No part of the network, or one of the further calls, cannot be traced.
        """
        if so_far is not None and calls:
            return self._analyse_again(pl_module, so_far, calls, rewrite_hard_coded)
        if resumed:
            original = OriginalNetwork.from_state_dict(resumed["original"])
            if calls is None:
                calls = self._calls_like_those_of(original, pl_module, ranks)
            with self.paused():
                groups = original.find_groups(pl_module, calls, rewrite_hard_coded)
            if not resumed["history"]:
                self._go_on(resumed["calls"], groups, original.by_step)
            if not resumed["history"] and groups.kept_units().keys() != resumed["kept"].keys():
                return groups, OriginalNetwork.of(pl_module, groups)  # it runs other ways now, and has lost nothing yet
            return groups.restricted(resumed["kept"]), original
        recorder = self._seen(pl_module)
        with recorder.paused():
            groups = self._find_groups(recorder, pl_module, ranks, rewrite_hard_coded)
        self._settle(recorder)
        return groups, OriginalNetwork.of(pl_module, groups)

    def _analyse_again(
        self, pl_module: LightningModule, groups: ChannelGroups, news: Sequence[Call], rewrite_hard_coded: bool
    ) -> tuple[ChannelGroups, OriginalNetwork]:
        recorder = self._seen(pl_module)
        names = sorted({call.name or type(pl_module).__name__ for call in news})
        rank_zero_info(f"The network runs in a new way (in a call of `{'`, `'.join(names)}`) and is analysed again.")
        with recorder.paused():
            found = groups_with_calls(pl_module, groups, news, rewrite_hard_coded)
        self._settle(recorder)
        return found, OriginalNetwork.of(pl_module, found)

    def _settle(self, recorder: CallRecorder) -> None:
        self._analyses += 1
        self._forget_news()
        recorder.settle()

    def _find_groups(
        self, recorder: CallRecorder, pl_module: LightningModule, ranks: Ranks, rewrite_hard_coded: bool
    ) -> ChannelGroups:
        """Analyse the training step, where only that shows how layers work together, or else what it calls."""
        found = ranks.from_first([list(twin) for twin in likely_twins(pl_module)])
        twins = [Twin(*names) for names in found]
        if self._step is not None and recorder.needs_step():
            try:
                groups = _groups_of_step(self._step, pl_module, ranks, rewrite_hard_coded, twins)
                self._by_step = True
                return groups
            except TraceError as error:
                if not recorder.calls:
                    raise
                rank_zero_info(f"The calls in `training_step` are analysed one by one: {error}")
        return groups_of_network(
            pl_module,
            recorder.calls,
            lambda: answered_by_first_rank(recorder.real_calls, pl_module, ranks),
            lambda: submodules_of_first_rank(recorder, pl_module, ranks),
            rewrite_hard_coded,
            twins,
        )

    def _calls_like_those_of(
        self, original: OriginalNetwork, pl_module: LightningModule, ranks: Ranks
    ) -> Sequence[Call]:
        """Return the first batch's calls of what was analysed before: step, whole network, or its submodules."""
        recorder, step = self._seen(pl_module), self._step
        with recorder.paused():
            if original.in_submodules:
                return submodules_of_first_rank(recorder, pl_module, ranks).calls
            real = [step] if original.by_step and step is not None else recorder.real_calls
            if original.answered:
                return answered_by_first_rank(real, pl_module, ranks)
            return [tree_fake(call, FakeMode()) for call in real]

    def _seen(self, pl_module: LightningModule) -> CallRecorder:
        recorder = self._recorder
        if recorder is None or not (recorder.calls or self._step):
            wanted = f"`{self._target}`" if self._target else "a network"
            raise MisconfigurationException(
                f"Expected {type(pl_module).__name__}.training_step to call {wanted}, but in its first batch no such "
                "call was seen, so that nothing can be pruned. Set `target` to the name of a submodule that it calls."
            )
        return recorder


def calls_of_checkpoint(resumed: Mapping[str, Any], pl_module: LightningModule) -> list[Call] | None:
    """Return how a checkpoint says the network is called; ``None`` where its arguments are no plain data."""
    return OriginalNetwork.from_state_dict(resumed["original"]).calls(pl_module)


def modules_not_shown(groups: ChannelGroups, names: Collection[str]) -> set[str]:
    """Return those of some modules of which the traces run no operator: code that goes by a counter runs them later."""
    if any(call.is_submodule for call in groups.calls):
        return set()
    ops = (op for trace in groups.structure.propagation.traces for op in trace.ops)
    running = {op.meta["module"] for op in ops}
    running |= {name[:end] for name in running for end, mark in enumerate(name) if mark == "."}
    return {name for name in names if is_module_name(name) and name not in running}


def _training_step(pl_module: LightningModule, batch: Any, batch_idx: int) -> Call | None:
    """Return the call of the training step that Lightning makes for a batch; ``None`` if it fetches its own data."""
    parameters = [*inspect.signature(pl_module.training_step).parameters.values()]
    if not parameters or parameters[0].name == "dataloader_iter":
        return None
    takes_index = len(parameters) > 1 or parameters[0].kind is inspect.Parameter.VAR_POSITIONAL
    with pl_module.trainer.precision_plugin.train_step_context():
        autocast = current_autocast()  # the Trainer enters it after the hook that sees the batch
    return Call("", (batch, batch_idx) if takes_index else (batch,), autocast=autocast, method=_STEP)


def _groups_of_step(
    step: Call, pl_module: LightningModule, ranks: Ranks, rewrite_hard_coded: bool, twins: Sequence[Twin]
) -> ChannelGroups:
    return groups_of_network(
        pl_module,
        [tree_fake(step, FakeMode())],
        lambda: answered_by_first_rank([step], pl_module, ranks),
        lambda: TraceableSubmodules((), ()),
        rewrite_hard_coded,
        twins,
    )
