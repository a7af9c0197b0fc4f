"""A progress bar while operators are measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

_TEXT = "Measuring operators"


@contextlib.contextmanager
def progress_bar(total: int, show: bool) -> Iterator[Callable[[], None]]:
    """Show a bar within a block, by Rich, else by tqdm, which Lightning needs; hand out a function that moves it on.

    Args:
        total: Steps until the end.
        show: Show anything at all.
    """
    if not show:
        yield lambda: None
        return
    try:
        from rich.errors import LiveError
        from rich.progress import Progress
    except ImportError:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=_TEXT) as plain:
            yield lambda: plain.update() and None
        return
    bar = Progress()
    task = bar.add_task(_TEXT, total=total)
    try:
        bar.start()
    except LiveError:  # another bar is shown, a Trainer's say
        yield lambda: None
        return
    try:
        yield lambda: bar.advance(task)
    finally:
        bar.stop()
