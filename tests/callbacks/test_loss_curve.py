import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_taylor_prune.callbacks import LossCurve
from tests.lightning_modules import Adversarial, Classifier, loader, trainer


class Reference(Callback):
    """Reads every loss at once, from the module itself."""

    def __init__(self):
        self.losses = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(loss.item() * trainer.accumulate_grad_batches)


class Clock:
    """What a curve asks of a Trainer."""

    is_global_zero, accumulate_grad_batches, global_step = True, 1, 0


def fed(curve, losses):
    """Give a curve one loss per mini-batch."""
    clock, module = Clock(), Classifier()
    for loss in losses:
        clock.global_step += 1
        curve.on_train_batch_end(clock, module, {"loss": torch.tensor(loss)}, None, 0)
    return curve


@pytest.mark.parametrize("accumulated", [1, 2], ids=["each-batch", "two-batches-a-step"])
def test_losses_are_those_of_the_minibatches(accumulated):
    curve, reference = LossCurve(), Reference()
    trainer(curve, more_callbacks=[reference], accumulate_grad_batches=accumulated).fit(Classifier(), loader())
    assert curve.losses == pytest.approx(reference.losses, rel=1e-6)


def test_iterations_are_optimizer_steps():
    curve = LossCurve()
    trainer(curve, accumulate_grad_batches=2).fit(Classifier(), loader())
    assert curve.iterations == [0, 1, 1, 2, 2, 3, 3, 4]


def test_training_without_a_loss_has_no_curve():
    curve = LossCurve()
    trainer(curve).fit(Adversarial(), loader(32))
    assert (curve.iterations, curve.losses) == ([], [])


def test_losses_wait_on_their_device():
    curve = fed(LossCurve(), [1.0] * 255)
    assert len(curve._waiting) == 255
    fed(curve, [1.0])
    assert not curve._waiting


def test_memory_that_is_written_again_keeps_its_loss():
    curve, loss = LossCurve(), torch.tensor(1.0)
    curve.on_train_batch_end(Clock(), Classifier(), loss, None, 0)
    loss.fill_(2)
    assert curve.losses == [1.0]


def test_long_curves_are_thinned_evenly():
    curve = fed(LossCurve(max_points=8), [float(i) for i in range(100)])
    assert curve.losses == [float(i) for i in range(0, 100, curve.every)]
    assert 4 <= len(curve.losses) <= 8
    assert curve.iterations == [i + 1 for i in range(0, 100, curve.every)]


def test_thinned_curve_goes_on_from_its_state():
    losses = [float(i) for i in range(100)]
    resumed = LossCurve(max_points=8)
    resumed.load_state_dict(fed(LossCurve(max_points=8), losses[:37]).state_dict())
    clock, module = Clock(), Classifier()
    for step, loss in enumerate(losses[37:], start=38):
        clock.global_step = step
        resumed.on_train_batch_end(clock, module, torch.tensor(loss), None, 0)
    assert resumed.state_dict() == fed(LossCurve(max_points=8), losses).state_dict()


def test_resume_continues_the_curve_bit_for_bit(tmp_path):
    whole, first, rest = LossCurve(), LossCurve(), LossCurve()
    trainer(whole, max_epochs=3).fit(Classifier(), loader())
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    trainer(first, more_callbacks=[checkpoint], enable_checkpointing=True, max_epochs=2).fit(Classifier(), loader())
    trainer(rest, max_epochs=3).fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert len(first.losses) == 16
    assert rest.state_dict() == whole.state_dict()


def test_another_module_begins_a_new_curve():
    curve = LossCurve()
    for _ in range(2):
        trainer(curve).fit(Classifier(), loader())
    assert len(curve.losses) == 8


def test_training_the_same_module_on_continues_the_curve():
    curve, module = LossCurve(), Classifier()
    for _ in range(2):
        trainer(curve).fit(module, loader())
    assert len(curve.losses) == 16


def test_too_few_points_are_refused():
    with pytest.raises(MisconfigurationException, match="max_points.*got 1"):
        LossCurve(max_points=1)
