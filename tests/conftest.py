"""One thread per test process, so that results repeat and processes do not fight over cores."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("quiet", deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("quiet")


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> None:
    torch.set_num_threads(1)
