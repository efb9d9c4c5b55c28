import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Networks this small are no faster on more, and many times slower where the cores are shared."""
    torch.set_num_threads(1)
