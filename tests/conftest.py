import os
import tempfile

import pytest
import torch

# triton reads this when it is first imported, by whatever test; with a GPU its kernels run there instead.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# On tensors of this size threads mostly wait for each other, and kernels are compiled beside the tests. Those that are
# about threads set their number themselves.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Where the libraries that tests compile are; the processes that the tests are shared out to inherit it."""
    if "AGM_TEST_BUILDS" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="agm-tests-")
        os.environ["AGM_TEST_BUILDS"] = folder.name
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(lambda: os.environ.pop("AGM_TEST_BUILDS"))
