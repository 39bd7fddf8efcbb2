"""Datasets: those that come with the package, and arrays of the user's own.

`agm.data.layouts` reads the field's datasets as they lie on a disk.
"""

from agm.data.arrays import save
from agm.data.datasets import available, load
from agm.data.multimodal import MultimodalData, Split

__all__ = ["MultimodalData", "Split", "available", "load", "save"]
