"""Catch what a training step's network returns, and let a teacher's answers to the same inputs act on its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.hooks import RemovableHandle

from lightning_taylor_prune.callbacks.trainer_compat import as_misconfiguration
from lightning_taylor_prune.errors import ArgumentError
from lightning_taylor_prune.recovery.distillation import attention_distance
from lightning_taylor_prune.recovery.teacher import Teacher
from lightning_taylor_prune.tracing.capture import is_redirected
from lightning_taylor_prune.tracing.own_hook import OwnHook

if TYPE_CHECKING:
    from lightning_taylor_prune.callbacks.recovery import Recovery


@dataclass(eq=False)
class _TaughtCall:
    """What a network returned, and the teacher for the same inputs; another network may have gone on from that."""

    name: str
    output: Any
    taught: Any
    is_inner: bool = False


class TaughtCalls:
    """Watches the calls of the networks in a training step between :meth:`begin` and :meth:`teach`.

    Args:
        pl_module: The LightningModule.
        teacher: A copy of it, or of the network that it calls.
        settings: The callback, for its arguments.

    Raises:
        ArgumentError: A layer of ``features`` does not exist.
    """

    def __init__(self, pl_module: LightningModule, teacher: Teacher, settings: Recovery) -> None:
        self._settings, self._teacher = settings, teacher
        self._is_whole = type(teacher.network) is type(pl_module)
        self._depth, self._watching = 0, False
        self._calls: list[_TaughtCall] = []
        self._features: dict[str, list[Tensor]] = {}
        self._taught_features: dict[str, list[Tensor]] = {}
        self._handles: list[RemovableHandle] = []
        for name, network in _networks(pl_module, settings.target):
            self._watch(name, network)
        for name in settings.features:
            self._keep(self._features, name, _layer(pl_module, name))
            self._keep(self._taught_features, name, _layer(teacher.network, name))

    def begin(self) -> None:
        """Catch calls from now on."""
        self.end()
        self._watching = True

    def end(self) -> None:
        """Forget what was caught."""
        self._watching, self._depth, self._calls = False, 0, []
        self._features.clear()
        self._taught_features.clear()

    def close(self) -> None:
        """Remove all hooks."""
        self.end()
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def teach(self, scale: float) -> Tensor | None:
        """Let the distances to the teacher act on the gradients of the backward pass that follows.

        Args:
            scale: What that pass's loss was multiplied with.

        Returns:
            The sum of the distances, detached; ``None`` where nothing that has a gradient was caught.

        Raises:
            ArgumentError: Outputs or features cannot be compared.
        """
        settings, distances = self._settings, []
        share = scale * settings.weight
        for output, taught in self._outputs():
            distances.append(_teach(output, taught, settings.distance, 1 - settings.weight, share))
        for features, taught in self._pairs_of_features():
            distances.append(_teach(features, taught, attention_distance, 1.0, share * settings.feature_weight))
        self.end()
        return torch.stack(distances).sum() if distances else None

    def _watch(self, name: str, network: nn.Module) -> None:
        def before(module: nn.Module, args: Any) -> None:
            self._depth += self._sees(module)

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._depth and self._sees(module):
                self._depth -= 1
                if not self._depth and output is not None:
                    with as_misconfiguration():
                        self._note(name, args, kwargs, output)

        self._handles.append(network.register_forward_pre_hook(OwnHook(before)))
        self._handles.append(network.register_forward_hook(OwnHook(after), with_kwargs=True, always_call=True))

    def _sees(self, module: nn.Module) -> bool:
        return self._watching and not is_redirected(module)

    def _keep(self, table: dict[str, list[Tensor]], name: str, layer: nn.Module) -> None:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if self._watching and isinstance(output, Tensor):
                table.setdefault(name, []).append(output)

        self._handles.append(layer.register_forward_hook(OwnHook(keep)))

    def _note(self, name: str, args: Any, kwargs: Any, output: Any) -> None:
        """Ask the teacher, which goes on from its own results where the network did."""
        if isinstance(output, Tensor) and not output.dim():
            return  # a loss with parameters of its own
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        own_results = self._results_of_teacher()
        args, kwargs = tree_map_only(Tensor, lambda t: own_results.get(id(t), t.detach()), (args, kwargs))
        if self._calls and any(t.requires_grad and id(t) not in own_results for t in given):
            raise ArgumentError(
                f"Expected `training_step` to call one network, but it computes what it gives to `{name}` from the "
                f"result of `{self._calls[-1].name}`, so that the teacher has no inputs of its own for it. Compute "
                "both in `forward` and call `self(...)`, or name one network as `target=`."
            )
        for call in self._calls:
            call.is_inner |= not {id(value) for value in given}.isdisjoint(map(id, tree_leaves(call.output)))
        self._calls.append(_TaughtCall(name, output, self._teacher.part(name if self._is_whole else "", args, kwargs)))

    def _results_of_teacher(self) -> dict[int, Tensor]:
        return {
            id(own): taught
            for call in self._calls
            for own, taught in zip(tree_leaves(call.output), tree_leaves(call.taught), strict=False)
            if isinstance(own, Tensor)
        }

    def _outputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what is compared: outputs from which no other network has gone on."""
        for call in self._calls:
            if not call.is_inner and (output := self._chosen(call.output, call.name)).requires_grad:
                yield output, self._chosen(call.taught, call.name)

    def _chosen(self, output: Any, name: str) -> Tensor:
        """Return the tensor of an output that is compared."""
        if self._settings.output is not None:
            output = self._settings.output(output)
        elif isinstance(output, Mapping) and "logits" in output:
            output = output["logits"]
        if not isinstance(output, Tensor):
            raise ArgumentError(
                f"Expected `{name or 'forward'}` to return a tensor, or a mapping with `logits`, for `Recovery` to "
                f"compare, but got {type(output).__name__}. Choose a tensor of it: `output=lambda output: ...`."
            )
        return output

    def _pairs_of_features(self) -> Iterator[tuple[Tensor, Tensor]]:
        for name in self._settings.features:
            pairs = zip(self._features.get(name, ()), self._taught_features.get(name, ()), strict=False)
            yield from ((own, taught) for own, taught in pairs if own.requires_grad)


def _teach(
    output: Tensor, taught: Tensor, distance: Callable[[Tensor, Tensor], Tensor], keep: float, share: float
) -> Tensor:
    """Have an output's gradient become ``keep`` times itself, and ``share`` times that of its distance to another."""
    leaf = output.detach().requires_grad_()
    with torch.enable_grad():
        found = distance(leaf, taught)
    (gradient,) = torch.autograd.grad(found, leaf)
    output.register_hook(lambda own: keep * own + share * gradient)
    return found.detach()


def _networks(pl_module: LightningModule, target: str | None) -> Iterator[tuple[str, nn.Module]]:
    """Yield what a training step may call as its network: the target, or else the module and its children."""
    if target is not None:
        yield target, pl_module.get_submodule(target)
        return
    yield "", pl_module
    yield from _callable_children(pl_module, "")


def _callable_children(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if type(child).forward is nn.Module.forward:  # a list or dictionary of modules
            yield from _callable_children(child, f"{prefix}{name}.")
        elif any(True for _ in child.parameters()):
            yield f"{prefix}{name}", child


def _layer(network: nn.Module, name: str) -> nn.Module:
    """Return a layer by its name in the LightningModule; a teacher that is the network alone has it without prefix."""
    modules: dict[str, nn.Module] = dict(network.named_modules())
    parts = name.split(".")
    found = (modules[rest] for i in range(len(parts)) if (rest := ".".join(parts[i:])) in modules)
    if (layer := next(found, None)) is None:
        raise ArgumentError(f"Expected argument `features` to name layers of the module, but there is no `{name}`.")
    return layer
