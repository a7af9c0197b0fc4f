import pytest

from recipes.checks import check_network, check_values, chosen_stages
from recipes.data import DigitsData
from recipes.errors import RecipeError
from recipes.models import VGG, ResNet
from recipes.stages import open_data


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=abc", "`seed` to be int, got 'abc'"),
        ("seed=true", "`seed` to be int, got True"),
        ("cpu_threads=two", "`cpu_threads` to be int or null, got 'two'"),
        ("channels_last=perhaps", "`channels_last` to be bool, got 'perhaps'"),
        ("weights=3", "`weights` to be str or null, got 3"),
        ("nodes=1.5", "`nodes` to be int, got 1.5"),
        ("data.batch_size=many", "`data.batch_size` to be int, got 'many'"),
        ("data.batch_size=0", "`data.batch_size` to be at least 1, got 0"),
        ("seed=-1", "`seed` to be at least 0, got -1"),
        ("seed=99999999999", "`seed` to be at most 4294967295, got 99999999999"),
        ("title=3", "`title` to be str or null, got 3"),
        ("notes=one", "`notes` to be a list of strings, got one"),
        ("objectives=[speed]", r"`objectives` to be a list of some of params, val_acc, got \['speed'\]"),
        ("objectives=val_acc", "`objectives` to be a list of some of params, val_acc, got val_acc"),
        ("gpus=0", "`gpus` to be at least 1, got 0"),
        ("gpus=many", "`gpus` to be an int of at least 1, or auto, got 'many'"),
        ("cpu_threads=0", "`cpu_threads` to be at least 1, got 0"),
        ("train.optimizer.lr=nan", "`train.optimizer.lr` to be a finite number, got nan"),
        ("retrain.optimizer.lr=inf", "`retrain.optimizer.lr` to be a finite number, got inf"),
        ("prune.optimizer.lr=fast", "`prune.optimizer.lr` to be a finite number or a bool, got 'fast'"),
        ("train.optimizer.momentum=2", r"`train.optimizer.momentum` to be a number in \[0, 1\), got 2"),
        ("+trainer.limit_train_batches=nan", "`trainer.limit_train_batches` to be a finite number, got nan"),
        ("model.widths=[8,nan]", "`model.widths` to be a finite number, got nan"),
        ("pruning.max_prunes=null", "`prune.trainer.max_steps` to be an int, got None: `pruning.max_prunes` is null"),
    ],
)
def test_setting_of_another_type_is_refused(compose_recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        check_values(compose_recipe(override))


def test_composed_values_pass(compose_recipe):
    check_values(compose_recipe())


@pytest.mark.parametrize(
    ("overrides", "stages"),
    [
        ([], ["train", "prune", "retrain", "compare"]),
        (["stage=prune"], ["prune"]),
        (["stage=[compare,retrain]"], ["retrain", "compare"]),
        (["stage=prune", "weights=a.pt"], ["train", "prune"]),
    ],
    ids=str,
)
def test_stages_come_in_their_order_and_weights_are_loaded_first(compose_recipe, overrides, stages):
    assert chosen_stages(compose_recipe(*overrides)) == stages


def test_no_stage_is_refused(compose_recipe):
    with pytest.raises(RecipeError, match="`stage` to be some of train, prune, retrain, compare, got none"):
        chosen_stages(compose_recipe("stage=[]"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.val_fraction=half", "`data`: expected `val_fraction` to be float, got 'half'"),
        ("data.split_seed=x", "`data`: expected `split_seed` to be int, got 'x'"),
        ("data.test_fraction=1.5", "a held-out fraction between 0 and 1, got 1.5"),
    ],
)
def test_data_of_another_kind_is_refused(compose_recipe, override, message):
    with pytest.raises(RecipeError, match=message):
        open_data(compose_recipe(override).data)


@pytest.mark.parametrize("override", ["stage=polish", "stage=[train,polish]", "stage=5"])
def test_unknown_stage_is_refused(compose_recipe, override):
    with pytest.raises(RecipeError, match=r"`stage` to be some of train, prune, retrain, compare, got (polish|5)"):
        chosen_stages(compose_recipe(override))


@pytest.fixture(scope="module")
def digits():
    data = DigitsData()
    data.setup("fit")
    return data


def test_network_that_cannot_take_the_images_is_refused(compose_recipe, digits):
    network = VGG(1, 10, stages=[[4]] * 5)  # halves 8 pixels five times
    with pytest.raises(RecipeError, match="`model` does not take images of 1 x 8 x 8"):
        check_network(network, digits, compose_recipe().pruning)


@pytest.mark.parametrize("target", ["network.layer9", "layer1", "head"])
def test_target_that_is_not_there_is_refused(compose_recipe, digits, target):
    with pytest.raises(RecipeError, match=rf"`pruning.target` .*, got {target}; there are network, network.conv1"):
        check_network(ResNet(1, 10, 8, (4, 8, 8)), digits, compose_recipe(f"pruning.target={target}").pruning)


@pytest.mark.parametrize("target", ["null", "network", "network.layer1"])
def test_target_that_is_there_passes(compose_recipe, digits, target):
    check_network(ResNet(1, 10, 8, (4, 8, 8)), digits, compose_recipe(f"pruning.target={target}").pruning)
