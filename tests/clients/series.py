"""Clients that forecast time series with the libraries' own modules and loaders."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np

from tests.clients.training import STEPS_PER_EPOCH, Client, Training, batches

HORIZON, WINDOW = 4, 8


def frame(length: int = 48) -> Any:
    """Return four series in the long form that libraries for forecasting read."""
    pandas = importlib.import_module("pandas")
    rng = np.random.default_rng(0)
    parts = [
        pandas.DataFrame(
            {
                "unique_id": name,
                "ds": pandas.date_range("2020-01-01", periods=length, freq="D"),
                "time": np.arange(length),
                "y": np.sin(np.arange(length) / 3) + 0.1 * rng.standard_normal(length),
            }
        )
        for name in "abcd"
    ]
    return pandas.concat(parts, ignore_index=True)


def neuralforecast(name: str, **options: Any) -> Training:
    models, tsdataset = (importlib.import_module(f"neuralforecast.{part}") for part in ("models", "tsdataset"))
    if name in ("iTransformer", "TSMixer"):
        options = {**options, "n_series": 4}
    module = getattr(models, name)(h=HORIZON, input_size=WINDOW, **options)
    dataset, *_ = tsdataset.TimeSeriesDataset.from_df(frame()[["unique_id", "ds", "y"]])
    module.val_size = module.test_size = 0
    loader = tsdataset.TimeSeriesDataModule(dataset, batch_size=4, shuffle_train=False).train_dataloader()
    made = next(iter(loader))
    return Training(module, batches(*[made] * STEPS_PER_EPOCH), importlib.import_module("pytorch_lightning"))


def forecasting(name: str, **options: Any) -> Training:
    library = importlib.import_module("pytorch_forecasting")
    dataset = library.TimeSeriesDataSet(
        frame(),
        time_idx="time",
        target="y",
        group_ids=["unique_id"],
        max_encoder_length=WINDOW,
        max_prediction_length=HORIZON,
        time_varying_unknown_reals=["y"],
        **({"time_varying_known_reals": ["time"]} if name == "TemporalFusionTransformer" else {}),
    )
    module = getattr(library, name).from_dataset(dataset, **options, log_interval=-1)
    loader = dataset.to_dataloader(train=False, batch_size=16)
    made = [batch for _, batch in zip(range(STEPS_PER_EPOCH), loader, strict=False)]
    return Training(module.train(), batches(*made))


NEURALFORECAST = {"library": "neuralforecast", "package": "neuralforecast"}
FORECASTING = {"library": "pytorch_forecasting", "package": "pytorch-forecasting"}

NIXTLA: dict[str, dict[str, Any]] = {
    "MLP": {"hidden_size": 32},
    "NHITS": {"mlp_units": [[32, 32]] * 3},
    "NBEATS": {"mlp_units": [[32, 32]] * 3},
    "TFT": {"hidden_size": 16, "n_head": 2},
    "LSTM": {"encoder_hidden_size": 16, "decoder_hidden_size": 16},
    "TCN": {"encoder_hidden_size": 16, "decoder_hidden_size": 16},
    "PatchTST": {"hidden_size": 16, "n_heads": 2, "encoder_layers": 2, "linear_hidden_size": 32, "patch_len": 4},
    "iTransformer": {"hidden_size": 16, "n_heads": 2, "d_ff": 32},
    "TSMixer": {"ff_dim": 16},
}

CLIENTS = {
    **{
        f"neuralforecast/{n.lower()}": Client(**NEURALFORECAST, build=partial(neuralforecast, n, **NIXTLA[n]))
        for n in NIXTLA
    },
    "pytorch_forecasting/nbeats": Client(**FORECASTING, build=partial(forecasting, "NBeats", widths=[16, 32])),
    "pytorch_forecasting/tft": Client(
        **FORECASTING,
        build=partial(forecasting, "TemporalFusionTransformer", hidden_size=16, attention_head_size=2),
    ),
}
