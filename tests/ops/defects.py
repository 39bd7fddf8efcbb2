"""Kernels with one mistake each (emulated/defects.cu)."""

from .building import EMULATOR, Library

# What the emulator says of those that it stops.
STOPPED = {
    "divergent_barriers": "divergent threads: thread .* waits in line .* but thread .* waits in line",
    "early_return": "divergent threads: .* thread 7 has returned",
    "absent_lane": "divergent threads: .* thread 7 has returned",
    "lane_outside_mask": "divergent warp: .* for lane 16",
    "no_blocks": "invalid configuration",
    "another_stream": "another stream",
    "any_device": "whatever device",
}
# What shows as a wrong number.
WRONG = ("missing_barrier", "overtaken", "unwritten_shared")
# What the sanitizers report.
SANITIZED = {
    "out_of_bounds": "heap-buffer-overflow",
    "shared_out_of_bounds": "index 256 out of bounds",
    "misaligned": "misaligned address",
    "host_out_of_bounds": "heap-buffer-overflow",
}
CORRECT = ("reverse",)


def library(*flags: str) -> Library:
    names = (*CORRECT, *WRONG, *STOPPED, *SANITIZED)
    signatures = dict.fromkeys(names, "(Tensor numbers) -> Tensor")
    return Library("agm_defects", [EMULATOR / "defects.cu", EMULATOR / "emulator.cpp"], flags, signatures)
