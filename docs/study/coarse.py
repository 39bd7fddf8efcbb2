"""Averages the spectrograms of an AV-Digits file over 2 x 2 cells: a fourth of the work, for studies of many runs.

python docs/study/coarse.py av-digits coarse.npz
"""

import sys
from dataclasses import replace

import torch.nn.functional as F

from agm import data as datasets
from agm.data import Split


def coarse(split: Split) -> Split:
    """(N, 1, 40, 80) -> (N, 1, 20, 40) in "audio"; all else as it is."""
    return Split({**split.inputs, "audio": F.avg_pool2d(split.inputs["audio"], 2)}, split.target)


def main(source: str, target: str) -> None:
    data = datasets.load(source)
    datasets.save(replace(data, train=coarse(data.train), test=coarse(data.test)), target)


if __name__ == "__main__":
    main(*sys.argv[1:])
