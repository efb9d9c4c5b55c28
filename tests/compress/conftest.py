import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Networks this small are no faster on more, and many times slower where the cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def seed():
    """What a file draws does not depend on the files that its process ran before."""
    torch.manual_seed(0)
