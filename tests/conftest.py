import os

import torch

# triton reads this when it is first imported, by whatever test; with a GPU its kernels run there instead.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
