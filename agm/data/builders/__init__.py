"""Builders of the bundled sets: each reads public packages as they are downloaded, and writes one `.npz` file.

The same packages give the same bytes under the same versions of numpy and Pillow. Training needs none of them: the sets
come with the package, all but `stamps`, whose licence does not allow it.
"""

from agm.data.builders.basic_motions import build_basic_motions
from agm.data.builders.clipart import build_clipart
from agm.data.builders.emoji import build_emoji
from agm.data.builders.mfeat import build_mfeat
from agm.data.builders.stamps import build_stamps
from agm.data.builders.yeast import build_yeast

__all__ = [
    "build_basic_motions",
    "build_clipart",
    "build_emoji",
    "build_mfeat",
    "build_stamps",
    "build_yeast",
]
