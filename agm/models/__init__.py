"""Fusion networks over named encoders, and the encoders.

A fusion is a `FactorisedNetwork`: `encoders` (modality name -> module) and `fuse(features) -> logits`, so
that every encoder runs once, whatever the number of modality subsets. `build` makes one from sample shapes.
"""

from agm.models.averformer import GuidedAttentionFusion
from agm.models.cnn import SmallCNN
from agm.models.cross_attention import CrossAttentionFusion
from agm.models.early import EarlyFusion
from agm.models.encoder_sets import encoders
from agm.models.factorised import FactorisedNetwork
from agm.models.film import FiLMFusion
from agm.models.first_token import FirstTokenTransformer
from agm.models.gated import GatedFusion
from agm.models.initialisation import initialise_
from agm.models.late import LateFusion, LateSumFusion
from agm.models.lenet import LeNet
from agm.models.lstm import LSTMEncoder
from agm.models.maxout import Maxout
from agm.models.mlp import MLPEncoder
from agm.models.registry import aliases, build, fusions
from agm.models.resnet import ResNet18
from agm.models.text import TextEncoder
from agm.models.transformer import TransformerEncoder

__all__ = [
    "CrossAttentionFusion",
    "EarlyFusion",
    "FactorisedNetwork",
    "FiLMFusion",
    "FirstTokenTransformer",
    "GatedFusion",
    "GuidedAttentionFusion",
    "LSTMEncoder",
    "LateFusion",
    "LateSumFusion",
    "LeNet",
    "MLPEncoder",
    "Maxout",
    "ResNet18",
    "SmallCNN",
    "TextEncoder",
    "TransformerEncoder",
    "aliases",
    "build",
    "encoders",
    "fusions",
    "initialise_",
]
