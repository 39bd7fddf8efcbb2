"""Ways to balance the modalities of a network while it trains, under one interface.

`Strategy` says what a training loop calls and what a strategy fills in; README.md beside this file shows how to add
one. `strategies` has them by name.
"""

from agm.strategies.agm import AGM
from agm.strategies.amco import AMCo
from agm.strategies.amgb import AMGB
from agm.strategies.amss import AMSS, AMSSPlus
from agm.strategies.arl import ARL
from agm.strategies.aug import AUG
from agm.strategies.balgrad import BalGrad
from agm.strategies.batch import Batch
from agm.strategies.bounding import BoundedPasses
from agm.strategies.bss import BSS
from agm.strategies.cggm import CGGM
from agm.strategies.cml import CML
from agm.strategies.dgl import DGL
from agm.strategies.di_mml import DIMML
from agm.strategies.draws import Draws
from agm.strategies.dus import DUS
from agm.strategies.ensemble import UnimodalEnsemble
from agm.strategies.g2d import G2D
from agm.strategies.g_blending import GBlending
from agm.strategies.heads import LinearHead, hidden_heads, linear_heads
from agm.strategies.hybrid_loss import HybridLoss
from agm.strategies.igm import IGM
from agm.strategies.inforeg import InfoReg
from agm.strategies.irm import IRM
from agm.strategies.joint import Joint
from agm.strategies.lfm import LFM
from agm.strategies.mbsd import MBSD
from agm.strategies.mcr import MCR
from agm.strategies.measuring import Measured, measure
from agm.strategies.mla import MLA
from agm.strategies.mlb import MLB
from agm.strategies.mmcosine import MMCosine
from agm.strategies.mmpareto import MMPareto
from agm.strategies.moments import FirstMoment
from agm.strategies.mses import MSES
from agm.strategies.mslr import MSLR
from agm.strategies.multi_loss import MultiLoss
from agm.strategies.ogm import OGM, OGMGE
from agm.strategies.opm import OPM
from agm.strategies.parts import Parts
from agm.strategies.pdmp import PDMP
from agm.strategies.pmr import PMR
from agm.strategies.reconboost import ReconBoost
from agm.strategies.registry import build, options_of, strategies
from agm.strategies.relearning import Relearning
from agm.strategies.remix import Remix
from agm.strategies.smoothing import SmoothedModulator
from agm.strategies.stacked import StackedEnsemble
from agm.strategies.strategy import Draw, Outcome, Strategy
from agm.strategies.teachers import Teacher
from agm.strategies.umt import UMT
from agm.strategies.valuation import Valuation

__all__ = [
    "AGM",
    "AMGB",
    "AMSS",
    "ARL",
    "AUG",
    "BSS",
    "CGGM",
    "CML",
    "DGL",
    "DIMML",
    "DUS",
    "G2D",
    "IGM",
    "IRM",
    "LFM",
    "MBSD",
    "MCR",
    "MLA",
    "MLB",
    "MSES",
    "MSLR",
    "OGM",
    "OGMGE",
    "OPM",
    "PDMP",
    "PMR",
    "UMT",
    "AMCo",
    "AMSSPlus",
    "BalGrad",
    "Batch",
    "BoundedPasses",
    "Draw",
    "Draws",
    "FirstMoment",
    "GBlending",
    "HybridLoss",
    "InfoReg",
    "Joint",
    "LinearHead",
    "MMCosine",
    "MMPareto",
    "Measured",
    "MultiLoss",
    "Outcome",
    "Parts",
    "ReconBoost",
    "Relearning",
    "Remix",
    "SmoothedModulator",
    "StackedEnsemble",
    "Strategy",
    "Teacher",
    "UnimodalEnsemble",
    "Valuation",
    "build",
    "hidden_heads",
    "linear_heads",
    "measure",
    "options_of",
    "strategies",
]
