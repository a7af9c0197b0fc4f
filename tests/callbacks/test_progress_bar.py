import io
import re
import sys

import pytest
import rich
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch.utils.data import DataLoader, IterableDataset

from lightning_taylor_prune import TaylorPruningCallback
from lightning_taylor_prune.callbacks import PruningProgressBar
from lightning_taylor_prune.callbacks import progress_bar as bar
from tests.lightning_modules import Classifier, TwoStage, loader, trainer

WIDTH = 140


@pytest.fixture(autouse=True)
def console_of_the_process():
    """Lightning's bar sets up rich's console for the whole process."""
    yield
    rich.reconfigure()


def progress_bar(terminal=True, **settings):
    """A bar that writes to memory, and what it wrote."""
    written = io.StringIO()
    console = {"file": written, "force_terminal": terminal, "width": WIDTH, "record": True}
    return PruningProgressBar(console_kwargs=console, **settings), written


def pruning(**settings):
    """Prunes after steps 2, 4 and 6."""
    return TaylorPruningCallback(**{"every_n_steps": 2, "filters_per_prune": 2, "max_prunes": 3, **settings})


class Photographer(Callback):
    """Looks at the bar at the beginning of each training batch, at each validation, and at the end."""

    def __init__(self):
        self.batches, self.validations = [], []

    def look(self, trainer):
        console = Console(record=True, width=WIDTH, file=io.StringIO())
        progress = trainer.progress_bar_callback.progress
        for column in progress.columns:  # rich shows some columns anew only twice a second
            column._renderable_cache.clear()
        console.print(progress.get_renderable())
        return console.export_text()

    def on_train_batch_start(self, trainer, *args):
        self.batches.append(self.look(trainer))

    def on_train_end(self, trainer, *args):
        self.batches.append(self.look(trainer))

    def on_validation_batch_end(self, trainer, *args):
        self.validations.append(self.look(trainer))


def fit(progress, *callbacks, module=None, data=None, validation=None, **settings):
    """Train for 8 steps; returns what could be seen."""
    photographer = Photographer()
    callbacks = [progress, *callbacks, photographer]
    trained = trainer(more_callbacks=callbacks, enable_progress_bar=True, **settings)
    trained.fit(module or Classifier(), loader() if data is None else data, validation or loader(16, seed=1))
    return photographer


def row(name, screen):
    """The bar of a screen that begins with a name."""
    (line,) = [line for line in screen.splitlines() if line.startswith(name) and "•" in line]
    return line


def count(name, screen):
    """How far a row has come: `k/n`."""
    return re.search(r"(\d+/\S+) +\S+ •", row(name, screen))[1]


# --- the row of pruning ---------------------------------------------------------------------------------------------


def test_row_says_prune_k_of_n():
    seen = fit(progress_bar()[0], pruning()).batches
    assert [count("Pruning", screen) for screen in seen] == [f"{k}/3" for k in (0, 0, 1, 1, 2, 2, 3, 3, 3)]


def test_row_says_what_the_network_is_worth_and_how_much_is_kept():
    callback = pruning()
    seen = fit(progress_bar()[0], callback).batches
    last = callback.history[-1]
    before = sum(p.numel() for p in Classifier().parameters())
    assert (
        f"val_acc {last['metrics']['val_acc']:.4g}, 22 of 28 filters (79%), "
        f"{last['params']:,} of {before:,} params ({last['params'] / before:.0%})" in seen[-1]
    )


def test_metric_can_be_chosen():
    callback = pruning()
    seen = fit(progress_bar(monitor="val_loss")[0], callback).batches
    assert f"val_loss {callback.history[-1]['metrics']['val_loss']:.4g}, 22" in seen[-1]


def test_remaining_time_is_that_of_the_steps_up_to_the_last_prune(monkeypatch):
    ticks = iter(range(0, 10_000, 60))
    now = [0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])

    class Minute(Callback):
        def on_train_batch_end(self, *args):
            now[0] = next(ticks) + 60

    seen = fit(progress_bar()[0], Minute(), pruning()).batches
    left = [re.search(r"• (\S+)", row("Pruning", screen))[1] for screen in seen]
    assert left == ["-:--:--", *(f"0:0{minutes}:00" for minutes in (5, 4, 3, 2, 1, 0, 0, 0))]


def test_count_of_prunes_is_not_shown_twice():
    assert all("prune_of" not in screen for screen in fit(progress_bar()[0], pruning()).batches)


def test_training_row_keeps_its_metrics():
    class Logs(Classifier):
        def training_step(self, batch, batch_idx):
            self.log("shown", 0.125, prog_bar=True)
            return self.loss(batch)

    assert "shown: 0.125" in row("Epoch", fit(progress_bar()[0], pruning(), module=Logs()).batches[-1])


def test_row_of_pruning_without_limit_has_no_end():
    seen = fit(progress_bar()[0], pruning(max_prunes=None), max_epochs=-1, max_time={"seconds": 1}).batches
    assert count("Pruning", seen[2]) == "1/--"


def test_pruning_that_stops_before_it_begins_has_nothing_to_do():
    seen = fit(progress_bar()[0], pruning(exclude=["network"])).batches
    assert count("Pruning", seen[-1]) == "0/0"


def test_two_prunings_have_a_row_each():
    module, progress = TwoStage(), progress_bar()[0]
    seen = fit(progress, pruning(target="network"), pruning(target="head", max_prunes=2), module=module).batches
    assert (count("Pruning network", seen[-1]), count("Pruning head", seen[-1])) == ("3/3", "2/2")


# --- trainings of all kinds -----------------------------------------------------------------------------------------


def test_training_bounded_by_steps_shows_its_steps():
    seen = fit(progress_bar()[0], pruning(), max_epochs=-1, max_steps=20).batches
    assert [count("Epoch", screen) for screen in seen] == [f"{k}/20" for k in range(21)]
    assert "/-2" not in "".join(seen)


def test_accumulated_batches_are_not_counted_as_steps():
    seen = fit(progress_bar()[0], max_epochs=-1, max_steps=6, accumulate_grad_batches=2).batches
    assert count("Epoch", seen[-1]) == "6/6"


def test_training_bounded_by_epochs_shows_batches():
    seen = fit(progress_bar()[0], pruning(), max_epochs=2).batches
    assert [count("Epoch", screen) for screen in seen[:8]] == [f"{k}/8" for k in range(8)]
    assert row("Epoch", seen[-1]).startswith("Epoch 1/1")


def test_fit_without_pruning_has_an_ordinary_bar():
    seen = fit(progress_bar()[0]).batches
    assert all("Pruning" not in screen for screen in seen)
    assert count("Epoch", seen[-1]) == "8/8"


def test_several_validation_loaders_are_shown_one_after_the_other():
    class Two(Classifier):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    validation = [loader(16, seed=1), loader(24, seed=2)]
    seen = fit(progress_bar()[0], pruning(), module=Two(), validation=validation, num_sanity_val_steps=0).validations
    assert [count("Validation", screen) for screen in seen[:5]] == ["1/2", "2/2", "1/3", "2/3", "3/3"]


def test_data_of_unknown_length():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(loader().dataset)

    seen = fit(progress_bar()[0], pruning(), data=DataLoader(Stream(), 8)).batches
    assert count("Epoch", seen[-1]) == "8/--"


@pytest.mark.parametrize("what", ["validate", "test", "predict"])
def test_bar_outside_fit(what):
    class All(Classifier):
        test_step = Classifier.validation_step

        def predict_step(self, batch, batch_idx):
            return self(batch[0])

    progress, _ = progress_bar()
    evaluation = trainer(pruning(), more_callbacks=[progress], enable_progress_bar=True)
    getattr(evaluation, what)(All(), loader(16))
    assert "2/2" in progress._console.export_text()


def test_second_fit_begins_anew():
    progress, callback = progress_bar()[0], pruning()
    first, second = (fit(progress, callback).batches for _ in range(2))
    assert (count("Pruning", first[-1]), count("Pruning", second[0])) == ("3/3", "0/3")


@pytest.mark.parametrize("off", [{"refresh_rate": 0}, {"rank": 1}], ids=["turned-off", "other-rank"])
def test_bar_that_is_off_writes_nothing(off):
    progress, written = progress_bar(terminal=False, refresh_rate=off.get("refresh_rate", 10))
    if off.get("rank"):
        progress.disable()  # what Lightning calls on other ranks
    trained = trainer(pruning(), more_callbacks=[progress], enable_progress_bar=True)
    trained.fit(Classifier(), loader(), loader(16, seed=1))
    assert written.getvalue() == ""


# --- without a terminal ---------------------------------------------------------------------------------------------


def test_a_file_gets_one_line_per_prune():
    progress, written = progress_bar(terminal=False)
    callback = pruning()
    fit(progress, callback)
    lines = written.getvalue().strip().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"Pruning: prune {i + 1} of 3 at step {row['step']}: val_acc {row['metrics']['val_acc']:.4g}"
        for i, row in enumerate(callback.history)
    ]


def test_a_file_gets_no_escape_codes():
    progress, written = progress_bar(terminal=False)
    fit(progress, pruning())
    assert "\x1b" not in written.getvalue()


def test_a_file_gets_a_line_at_the_end_where_nothing_is_pruned():
    progress, written = progress_bar(terminal=False)
    fit(progress, max_epochs=2)
    (line,) = written.getvalue().strip().splitlines()
    assert re.match(r"epoch \d, step 16", line)


def test_bar_is_found_without_importing_rich_first():
    from lightning_taylor_prune import callbacks

    assert callbacks.PruningProgressBar is PruningProgressBar
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = callbacks.Other


def test_missing_rich_is_named_with_what_to_install(monkeypatch):
    from lightning_taylor_prune import callbacks

    monkeypatch.delitem(sys.modules, bar.__name__)
    monkeypatch.delattr(callbacks, "progress_bar")
    for name in ("rich.console", "rich.progress", "rich.text"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="progress bar needs rich, which cannot be imported: pip install rich"):
        _ = callbacks.PruningProgressBar
