"""Multimodal competition regularisation: a game between encoders over what shuffled modalities change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from agm.strategies._checks import check_choice, check_count, check_flag, check_number
from agm.strategies.batch import Batch
from agm.strategies.heads import linear_heads, pooled
from agm.strategies.parts import evaluation, zeros
from agm.strategies.strategy import Common, Strategy
from agm.strategies.taken import Taken

__all__ = ["MCR"]

Features = Mapping[str, Any]


class MCR(Strategy):
    """MCR (Kontras et al., "Balancing Multimodal Training Through Game-Theoretic Regularization", NeurIPS 2025).

        L   = joint CE(f, y) + unimodal sum_m CE(u_m, y) + game + contrastive Con + bottleneck CEB
        J_m = mean over `samples` permutations of JSD(softmax f(h with h_m permuted), softmax f(h)),
              JSD(q, p) = KL(q || (p + q)/2)/2 + KL(p || (p + q)/2)/2
        greedy:        strength * sum_e (-J_e^e + sum over m != e of J_m^e)
        independent:   strength * sum_e -J_e^e
        collaborative: strength * sum_e -J_e

    J_m^e has the value of J_m, and its gradient through encoder e and its block of the head alone; what belongs to no
    modality (a bias, a fusion that does not split) has all. Each encoder is to matter more to the prediction, and in
    the greedy game the others less.

    Con is the contrastive loss of the normalised features of all modalities: for every ordered pair of one class,
    -log(e^s / (e^s + sum over rows of another class)), s their product over `temperature`. CEB is the mean squared
    error of the features given the class, by a network of two linear layers that is trained along (`conditional`).

    One permutation serves both of two modalities; with more, each has its own. `shuffle` says which rows count.
    The fusion is run on permuted features in eval mode; encoders are not run again.

    Departures of the released code (`released=True`): the encoders are run again, in eval mode, for the permuted
    features; f(h) has a graph through every encoder, not through e alone; CEB is conditioned on f without a graph, not
    on the class. That code computes the game and Con and leaves both out of the loss; the authors' later package adds
    them, as here.

    Args:
        network: see `Strategy`.
        game: "greedy", "independent" or "collaborative".
        strength: lambda of the game, >= 0; 0.1 on CREMA-D, 0.01 on AVE.
        unimodal: weight of the unimodal losses, >= 0; 0.01 with pretrained encoders, 1 for conformers on CREMA-D. 0
            needs no heads.
        joint: weight of the joint loss; 1.
        contrastive: weight of Con; 1. Features that are not vectors are averaged over their tokens.
        bottleneck: weight of CEB; 0 for models trained from scratch in the released settings, else 1.
        samples: permutations a step; 32.
        shuffle: "all" rows, those with a "different index", or those with a "different label" than before.
        temperature: of Con; 0.5.
        target_graph: whether softmax f(h) has a graph in J_m. The released code and the paper's equations leave it.
        conditional: the network of CEB: (B, C) -> (B, sum of the widths); made for networks that know their widths.
        released: as the released code.
        common: see `Strategy`. Outside the window the loss is the joint one.

    Example:
        >>> strategy = MCR(network, game="greedy", strength=0.1, heads=linear_heads(network.widths, 6))
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        game: Literal["greedy", "independent", "collaborative"] = "greedy",
        strength: float = 0.1,
        unimodal: float = 0.01,
        joint: float = 1.0,
        contrastive: float = 1.0,
        bottleneck: float = 0.0,
        samples: int = 32,
        shuffle: Literal["all", "different index", "different label"] = "all",
        temperature: float = 0.5,
        target_graph: bool = True,
        conditional: nn.Module | None = None,
        released: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.game = check_choice("game", game, ("greedy", "independent", "collaborative"))
        self.shuffle = check_choice("shuffle", shuffle, ("all", "different index", "different label"))
        self.strength, self.joint = check_number("strength", strength), check_number("joint", joint)
        self.unimodal, self.contrastive = check_number("unimodal", unimodal), check_number("contrastive", contrastive)
        self.bottleneck = check_number("bottleneck", bottleneck)
        self.temperature = check_number("temperature", temperature)
        self.samples = check_count("samples", samples)
        self.target_graph = check_flag("target_graph", target_graph)
        self.released = check_flag("released", released)
        self.conditional: nn.Module | None = None
        if self.unimodal:
            self._require_heads()
        if self.bottleneck:
            self.conditional = conditional if conditional is not None else _conditional(network)

    @classmethod
    def default_heads(cls, network: Any, num_classes: int) -> dict[str, nn.Module] | None:
        return None if hasattr(network, "unimodal_logits") else linear_heads(network.widths, num_classes)

    def loss(self, batch: Batch) -> Tensor:
        if not self.active:
            return batch.joint_loss
        total = self.joint * batch.joint_loss
        if self.unimodal:
            losses = batch.unimodal_losses
            total = total + self.unimodal * torch.stack([losses[name] for name in self.modalities]).sum()
        game, divergences = self._game(batch)
        total = total + self.strength * game
        if self.contrastive:
            total = total + self.contrastive * self._contrastive(batch)
        if self.conditional is not None:
            total = total + self.bottleneck * self._bottleneck(batch)
        self.latest = {"score": divergences.detach()}
        return total

    # The game.

    def _game(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """() its loss, and (M,) J_m."""
        features = batch.features
        if self.released:
            with evaluation(self.network):
                features, _ = self.parts.run(batch.inputs)
        # A head that splits need not see the permuted features: its terms are permuted.
        terms = self.parts.terms(features)
        values = features if terms is None else terms
        # What does not depend on the feature, such as a share of a bias, belongs to no modality.
        constant = None if terms is None else self.parts.terms(zeros(_rows(features, slice(1))))
        orders, kept = self._orders(batch)
        same = torch.arange(len(batch.target), device=batch.target.device).repeat(self.samples)
        shuffled = {name: _rows(values[name], orders[name].flatten()) for name in self.modalities}
        plain = _rows(dict(values), same)
        repeated = batch.inputs.repeated(self.samples) if terms is None else batch.inputs
        found = []  # (M,) J_m of each encoder e
        for own in (None,) if self.game == "collaborative" else self.modalities:
            whole = self.released or own is None
            wanted = batch.logits if whole else self._seen_by(own, batch.inputs, values, constant)
            wanted = (wanted if self.target_graph else wanted.detach()).softmax(-1).repeat(self.samples, 1)
            row = []
            for name in self.modalities:
                logits = self._seen_by(own, repeated, {**plain, name: shuffled[name]}, constant)
                row.append(_divergence(logits.softmax(-1), wanted, kept[name].flatten()))
            found.append(torch.stack(row))
        divergences = torch.stack(found)  # (E, M)
        return (self._signs(divergences) * divergences).sum(), divergences[0]

    def _signs(self, values: Tensor) -> Tensor:
        if self.game == "collaborative":
            return -torch.ones_like(values)
        own = torch.eye(len(values), dtype=values.dtype, device=values.device)
        return 1 - 2 * own if self.game == "greedy" else -own

    def _seen_by(self, own: str | None, inputs: Taken, values: Features, constant: Features | None) -> Tensor:
        """Joint logits whose gradient goes to the encoder and the head of `own` (None: of all), and to the rest.

        Args:
            own: a modality.
            inputs: of the samples.
            values: modality -> its feature; its term of the logits where the head splits.
            constant: modality -> its term without a feature (1, C), where the head splits.
        """
        if constant is None:
            cut = {name: value if own in (None, name) else _detached(value) for name, value in values.items()}
            with evaluation(self.network):
                return self.parts.fused(inputs, cut)
        seen = {
            name: value if own in (None, name) else value.detach() + constant[name] - constant[name].detach()
            for name, value in values.items()
        }
        total: Tensor = torch.stack([seen[name] for name in self.modalities]).sum(0)
        return total

    def _orders(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Modality -> (K, B) the row that comes into each place, and modality -> (K, B) whether it counts."""
        samples, device = len(batch.target), batch.target.device
        orders: dict[str, Tensor] = {}
        if len(self.modalities) == 2:
            orders = dict.fromkeys(self.modalities, self._permutations(self.samples, samples, device))
        else:
            every = self._permutations(self.samples * len(self.modalities), samples, device)
            every = every.view(self.samples, len(self.modalities), samples)
            orders = {name: every[:, place] for place, name in enumerate(self.modalities)}
        kept = {}
        for name, order in orders.items():
            if self.shuffle == "all":
                kept[name] = torch.ones_like(order, dtype=torch.bool)
            elif self.shuffle == "different index":
                kept[name] = order != torch.arange(samples, device=device)
            else:
                kept[name] = batch.target[order] != batch.target
        return orders, kept

    def _permutations(self, count: int, samples: int, device: torch.device) -> Tensor:
        return torch.stack([self.draws.permutation(samples, device) for _ in range(count)])

    # The other two terms.

    def _contrastive(self, batch: Batch) -> Tensor:
        rows = torch.cat([F.normalize(pooled(batch.features[name]), dim=1) for name in self.modalities])
        target = batch.target.repeat(len(self.modalities))
        products = rows @ rows.T / self.temperature
        alike = target.unsqueeze(0) == target.unsqueeze(1)
        others = products.masked_fill(alike, -torch.inf).logsumexp(1, keepdim=True)
        pairs = alike & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        losses = torch.logaddexp(products, others) - products
        return torch.where(pairs, losses, 0.0).sum() / pairs.sum()

    def _bottleneck(self, batch: Batch) -> Tensor:
        given = batch.logits.detach() if self.released else batch.one_hot
        features = torch.cat([pooled(batch.features[name]) for name in self.modalities], 1)
        assert self.conditional is not None
        loss: Tensor = F.mse_loss(features, self.conditional(given.to(features.dtype)))
        return loss


def _divergence(shuffled: Tensor, plain: Tensor, kept: Tensor) -> Tensor:  # (N, C), (N, C), (N,) bool -> ()
    """The mean Jensen-Shannon divergence of the rows that count; 0 if none does."""
    first, second = shuffled.clamp_min(1e-20), plain.clamp_min(1e-20)
    middle = ((shuffled + plain) / 2).clamp_min(1e-20).log()
    rows = (first * (first.log() - middle) + second * (second.log() - middle)).sum(1) / 2
    return (rows * kept).sum() / kept.sum().clamp_min(1)


def _rows(feature: Any, order: Tensor | slice) -> Any:
    return pytree.tree_map(lambda leaf: leaf[order] if isinstance(leaf, Tensor) and leaf.dim() else leaf, feature)


def _detached(feature: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, feature)


def _conditional(network: Any) -> nn.Module:
    widths, classes = getattr(network, "widths", None), getattr(network, "num_classes", None)
    if not widths or not classes:
        raise ValueError(
            "Expected argument `conditional` to be a module from one-hot classes (B, C) to all features (B, sum of "
            "their widths), but got None, and the network does not say its widths. Give one, or bottleneck=0."
        )
    hidden = next(iter(widths.values()))
    first, second = nn.Linear(classes, hidden, bias=False), nn.Linear(hidden, sum(widths.values()), bias=False)
    return nn.Sequential(first, nn.ReLU(), second)
