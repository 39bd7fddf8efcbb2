import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    """The tensors here are tiny: waking a second thread costs more than it computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
