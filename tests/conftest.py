import os

import torch

# triton reads this when it is first imported, by whatever test; with a GPU its kernels run there instead.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# On tensors of this size threads mostly wait for each other, and kernels are compiled beside the tests. Those that are
# about threads set their number themselves.
torch.set_num_threads(1)
