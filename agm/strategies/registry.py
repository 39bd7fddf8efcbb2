"""Strategies by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from agm.strategies.agm import AGM
from agm.strategies.amco import AMCo
from agm.strategies.amgb import AMGB
from agm.strategies.amss import AMSS, AMSSPlus
from agm.strategies.arl import ARL
from agm.strategies.aug import AUG
from agm.strategies.balgrad import BalGrad
from agm.strategies.bss import BSS
from agm.strategies.cggm import CGGM
from agm.strategies.cml import CML
from agm.strategies.dgl import DGL
from agm.strategies.di_mml import DIMML
from agm.strategies.dus import DUS
from agm.strategies.ensemble import UnimodalEnsemble
from agm.strategies.g2d import G2D
from agm.strategies.g_blending import GBlending
from agm.strategies.hybrid_loss import HybridLoss
from agm.strategies.igm import IGM
from agm.strategies.inforeg import InfoReg
from agm.strategies.irm import IRM
from agm.strategies.joint import Joint
from agm.strategies.lfm import LFM
from agm.strategies.mbsd import MBSD
from agm.strategies.mcr import MCR
from agm.strategies.mla import MLA
from agm.strategies.mlb import MLB
from agm.strategies.mmcosine import MMCosine
from agm.strategies.mmpareto import MMPareto
from agm.strategies.mses import MSES
from agm.strategies.mslr import MSLR
from agm.strategies.multi_loss import MultiLoss
from agm.strategies.ogm import OGM, OGMGE
from agm.strategies.opm import OPM
from agm.strategies.pdmp import PDMP
from agm.strategies.pmr import PMR
from agm.strategies.reconboost import ReconBoost
from agm.strategies.relearning import Relearning
from agm.strategies.remix import Remix
from agm.strategies.stacked import StackedEnsemble
from agm.strategies.strategy import Strategy
from agm.strategies.umt import UMT
from agm.strategies.valuation import Valuation

__all__ = ["build", "options_of", "strategies"]

strategies: Mapping[str, type[Strategy]] = MappingProxyType(
    {
        "joint": Joint,
        "agm": AGM,
        "ogm": OGM,
        "ogm-ge": OGMGE,
        "mslr": MSLR,
        "mses": MSES,
        "multi-loss": MultiLoss,
        "hybrid-loss": HybridLoss,
        "g-blending": GBlending,
        "mlb": MLB,
        "inforeg": InfoReg,
        "mmpareto": MMPareto,
        "cggm": CGGM,
        "relearning": Relearning,
        "valuation": Valuation,
        "mcr": MCR,
        "lfm": LFM,
        "amss": AMSS,
        "amss-plus": AMSSPlus,
        "pmr": PMR,
        "mla": MLA,
        "aug": AUG,
        "igm": IGM,
        "amgb": AMGB,
        "bss": BSS,
        "dus": DUS,
        "balgrad": BalGrad,
        "irm": IRM,
        "dgl": DGL,
        "pdmp": PDMP,
        "remix": Remix,
        "opm": OPM,
        "mmcosine": MMCosine,
        "cml": CML,
        "amco": AMCo,
        "arl": ARL,
        "umt": UMT,
        "g2d": G2D,
        "mbsd": MBSD,
        "reconboost": ReconBoost,
        "di-mml": DIMML,
        "ensemble": UnimodalEnsemble,
        "stacked": StackedEnsemble,
    }
)


def build(name: str, network: nn.Module, **settings: Any) -> Strategy:
    """The strategy of this name over a network.

    Args:
        name: a key of `strategies`.
        network: see `Strategy`.
        settings: keyword arguments of that strategy.

    Raises:
        ValueError: an unknown name, or settings that cannot be.
        TypeError: a setting that the strategy does not have.
    """
    if name not in strategies:
        raise ValueError(f"Expected argument `name` to be one of {', '.join(strategies)}, but got {name!r}.")
    return strategies[name](network, **settings)


def options_of(name: str) -> dict[str, Any]:
    """The settings that are a strategy's own, and their defaults; those of every `Strategy` are not among them."""
    parameters = inspect.signature(strategies[name].__init__).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return own | ({"moments": "gradient"} if strategies[name].scales else {})
