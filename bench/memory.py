"""How much memory a step needs at its peak."""

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def step_peak(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes that live at a time during a call, beyond those that lived before it.

    On a GPU what torch's allocator counts (`torch.cuda.max_memory_allocated`). On a CPU every allocation and release
    of torch's allocator, as the profiler records them in their order: activations, gradients and what an operation
    allocates for its own use; not the scratch space that oneDNN or the BLAS library keep for themselves, which torch
    does not see. What was allocated before the call and is released in it does not count as released.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recorded.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [(event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]"]
    live = peak = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        live += change
        peak = max(peak, live)
    return peak


def resident(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of some tensors, each once: what stays from step to step."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
