"""Averages the spectrograms of an AV-Digits file over 2 x 2 cells: a fourth of the work, for studies of many runs.

python docs/study/coarse.py av-digits coarse.npz
python docs/study/coarse.py av-digits useless.npz --useless image     each sample gets the image of another one
"""

import argparse
from dataclasses import replace

import torch
import torch.nn.functional as F

from agm import data as datasets
from agm.data import Split


def coarse(split: Split) -> Split:
    """(N, 1, 40, 80) -> (N, 1, 20, 40) in "audio"; all else as it is."""
    return Split({**split.inputs, "audio": F.avg_pool2d(split.inputs["audio"], 2)}, split.target)


def without_information(split: Split, modality: str) -> Split:
    """The modality's samples in an order of their own, so that they know nothing of the class."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return Split({**split.inputs, modality: split.inputs[modality][order]}, split.target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--useless", metavar="MODALITY")
    given = parser.parse_args()
    data = datasets.load(given.source)
    splits = [coarse(data.train), coarse(data.test)]
    if given.useless is not None:
        splits = [without_information(split, given.useless) for split in splits]
    datasets.save(replace(data, train=splits[0], test=splits[1]), given.target)


if __name__ == "__main__":
    main()
