"""Fusion networks over named encoders, and the encoders.

A fusion is a `FactorisedNetwork`: `encoders` (modality name -> module) and `fuse(features) -> logits`, so
that every encoder runs once, whatever the number of modality subsets. `build` makes one from sample shapes.
"""

from agm.models.averformer import GuidedAttentionFusion
from agm.models.cnn import SmallCNN
from agm.models.cross_attention import CrossAttentionFusion
from agm.models.early import EarlyFusion
from agm.models.factorised import FactorisedNetwork
from agm.models.film import FiLMFusion
from agm.models.gated import GatedFusion
from agm.models.late import LateFusion, LateSumFusion
from agm.models.lstm import LSTMEncoder
from agm.models.maxout import Maxout
from agm.models.mlp import MLPEncoder
from agm.models.registry import aliases, build, fusions
from agm.models.resnet import ResNet18
from agm.models.transformer import TransformerEncoder

__all__ = [
    "CrossAttentionFusion",
    "EarlyFusion",
    "FactorisedNetwork",
    "FiLMFusion",
    "GatedFusion",
    "GuidedAttentionFusion",
    "LSTMEncoder",
    "LateFusion",
    "LateSumFusion",
    "MLPEncoder",
    "Maxout",
    "ResNet18",
    "SmallCNN",
    "TransformerEncoder",
    "aliases",
    "build",
    "fusions",
]
