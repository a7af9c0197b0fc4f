"""A recipe that takes seconds: what tests put on the command line."""

TINY = (
    "model=resnet8",
    "train.trainer.max_epochs=1",
    "pruning.every_n_steps=2",
    "pruning.filters_per_prune=4",
    "pruning.max_prunes=3",
    "retrain.trainer.max_epochs=1",
    "+trainer.limit_train_batches=6",
    "logger=csv",
)
