"""Forward hooks that only look on: where they cannot run on fake tensors, the network is traced without them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.modules import module as hooks_of_all_modules
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

Hook = Callable[..., Any]


class Onlookers:
    """Hooks that return nothing and cannot run on fake tensors: they log numbers, say.

    Attributes:
        ids: Numbers of the hooks that are known to look on only; the hooks are kept, so that none is given twice.
    """

    def __init__(self) -> None:
        self.ids: dict[int, Hook] = {}

    @contextlib.contextmanager
    def kept_out(self, root: nn.Module) -> Iterator[None]:
        """Do not run onlookers in here; where another hook fails, find out whether it is one."""
        tables = [hooks_of_all_modules._global_forward_hooks, hooks_of_all_modules._global_forward_pre_hooks]
        for module in root.modules():
            tables += [module._forward_hooks, module._forward_pre_hooks]
        saved = [(table, dict(table)) for table in tables if table]
        for table, hooks in saved:
            table.update({number: self._guarded(hook) for number, hook in hooks.items()})
        try:
            yield
        finally:
            for table, hooks in saved:
                table.update({number: hook for number, hook in hooks.items() if number in table})

    def _guarded(self, hook: Hook) -> Hook:
        @functools.wraps(hook, updated=())
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if id(hook) in self.ids:
                return None
            try:
                return hook(*args, **kwargs)
            except Exception as error:
                if not _only_looks_on(hook, args, kwargs):
                    raise error
                self.ids[id(hook)] = hook
                return None

        return guarded


def _only_looks_on(hook: Hook, args: Any, kwargs: Any) -> bool:
    """Run a hook on zeros of the same shapes; whether it then returns nothing and changes nothing in place."""
    with _disable_current_modes(), torch.no_grad():
        real_args, real_kwargs = tree_map_only(FakeTensor, zeros_for, (args, kwargs))
        leaves = [leaf for leaf in tree_leaves((real_args, real_kwargs)) if isinstance(leaf, Tensor)]
        try:
            result = hook(*real_args, **real_kwargs)
        except Exception:  # then why it failed on fake tensors is what the user has to know
            return False
    return result is None and all(leaf._version == 0 for leaf in leaves)


def zeros_for(fake: Tensor) -> Tensor:
    """Return a real tensor of zeros with the shape, type and device of a fake one."""
    with no_dispatch():
        return torch.zeros(tuple(fake.shape), dtype=fake.dtype, device=fake.device)
