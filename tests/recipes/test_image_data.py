import pytest
import torch

from recipes.data import DigitsData
from recipes.errors import RecipeError
from recipes.image_data import split_indices


def test_split_depends_on_its_own_seed_only():
    torch.manual_seed(1)
    first = split_indices(100, 0.1, seed=0)
    torch.manual_seed(2)
    assert split_indices(100, 0.1, seed=0) == first != split_indices(100, 0.1, seed=1)
    assert sorted(first[0] + first[1]) == list(range(100))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 0.001])
def test_split_that_leaves_a_part_empty_is_refused(fraction):
    with pytest.raises(RecipeError, match=str(fraction)):
        split_indices(100, fraction, seed=0)


@pytest.mark.parametrize(("batch_size", "batches"), [(500, 2), (1150, 1), (2000, 1)])
def test_small_last_batch_is_dropped_unless_it_is_all(batch_size, batches):
    data = DigitsData(batch_size)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == batches
