import pytest

from recipes.checks import check_network, check_values, chosen_stages
from recipes.data import DigitsData
from recipes.errors import RecipeError
from recipes.models import VGG, ResNet


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
