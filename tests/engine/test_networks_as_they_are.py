"""Networks whose forward is written as people write it: outputs, arguments, batches, encoders."""

import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm

NAMES = ("audio", "visual")
ENCODERS = {"audio": "audio_net", "visual": "visual_net"}
BATCH, CLASSES = 6, 4
TARGET = torch.tensor([0, 1, 2, 3, 0, 1])


def inputs(seed: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(BATCH, 4, generator=generator, dtype=torch.float64) for name in NAMES}


class Net(nn.Module):
    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.visual_net = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.head = nn.Linear(10, classes)
        self.double()

    def logits(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], -1))

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.logits(audio, visual)


def expected(masked: str = "exact", alpha: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    """Logits and gradients of the plain network in a first step, by whatever way `agm.AGM` takes for it."""
    model = agm.AGM(Net(), NAMES, encoders=ENCODERS, masked=masked, alpha=alpha)  # type: ignore[arg-type]
    logits = model(**inputs(), target=TARGET)
    F.cross_entropy(logits, TARGET).backward()
    return logits.detach(), [p.grad for p in model.module.parameters()]


def same_step(model: agm.AGM, call: Callable[[], Any], logits: Callable[[Any], Tensor]) -> Any:
    """That a step gives the logits and gradients of `expected`; returns what the call returned."""
    output = call()
    found = logits(output)
    F.cross_entropy(found, TARGET).backward()
    want, gradients = expected(model._options.masked)
    torch.testing.assert_close(found.detach(), want, rtol=0, atol=1e-12)
    torch.testing.assert_close([p.grad for p in model.module.parameters()], gradients, rtol=0, atol=1e-12)
    return output


def count_rows(layer: nn.Module, rows: list[int]) -> None:
    """Notes the rows of a layer's calls; a hook that only did that would see the joint pass alone."""

    def forward(x: Tensor) -> Tensor:
        rows.append(x.shape[0])
        return type(layer).forward(layer, x)

    layer.forward = forward  # type: ignore[method-assign]


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


OUTPUTS: list[tuple[Any, Any, Callable[[Any], Tensor]]] = [
    (lambda z: (z, z.sum()), 0, lambda o: o[0]),
    (lambda z: [z.sum(), z], 1, lambda o: o[1]),
    (lambda z: {"logits": z, "norm": z.norm()}, None, lambda o: o["logits"]),
    (lambda z: {"heads": {"fused": z}, "aux": z[:, :2]}, "heads.fused", lambda o: o["heads"]["fused"]),
    (lambda z: Result(z, z.tanh()), None, lambda o: o.logits),
    (lambda z: (z[:, :2], Result(z, z.tanh())), lambda o: o[1].logits, lambda o: o[1].logits),
    (lambda z: z, None, lambda o: o),
]


class TestOutputs:
    @pytest.mark.parametrize("options", [{}, {"encoders": ENCODERS}, {"encoders": ENCODERS, "masked": "shared"}])
    @pytest.mark.parametrize(("returns", "output", "logits"), OUTPUTS)
    def test_come_back_in_their_own_structure(self, returns: Any, output: Any, logits: Any, options: Any) -> None:
        class Other(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Any:
                return returns(self.logits(audio, visual))

        model = agm.AGM(Other(), NAMES, output=output, **options)
        found = same_step(model, lambda: model(**inputs(), target=TARGET), logits)
        assert type(found) is type(Other()(**inputs()))
        assert agm.verify(model, inputs(), TARGET).ok
        model.eval()
        assert type(model(**inputs())) is type(found)

    def test_what_is_beside_the_logits_is_the_networks_own(self) -> None:
        class Other(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Any:
                logits = self.logits(audio, visual)
                return Result(logits, logits.tanh())

        model = agm.AGM(Other(), NAMES)
        found = model(**inputs(), target=TARGET)
        torch.testing.assert_close(found.hidden, found.logits.tanh())
        assert found.hidden.shape == (BATCH, CLASSES)

    def test_logits_of_other_shapes(self) -> None:
        class Segments(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return self.logits(audio, visual).view(BATCH * (len(audio) // BATCH), 2, 2).movedim(-1, 1)

        model = agm.AGM(Segments(), NAMES, class_dim=1, encoders=ENCODERS)
        target = torch.randint(0, 2, (BATCH, 2))
        logits = model(**inputs(), target=target)
        assert logits.shape == (BATCH, 2, 2)
        F.cross_entropy(logits, target).backward()
        assert agm.verify(model, inputs(), target).ok
        squeezed = Net(1)
        squeezed.forward = lambda audio, visual: squeezed.logits(audio, visual).squeeze(-1)  # type: ignore[method-assign]
        model = agm.AGM(squeezed, NAMES, score="squared_error")
        assert model(**inputs(), target=torch.rand(BATCH).double()).shape == (BATCH,)

    def test_more_in_training_than_in_eval_mode(self) -> None:
        class Auxiliary(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Any:
                logits = self.logits(audio, visual)
                return (logits, logits * 0.5) if self.training else logits

        model = agm.AGM(Auxiliary(), NAMES, output=0, encoders=ENCODERS)
        same_step(model, lambda: model(**inputs(), target=TARGET), lambda o: o[0])

    def test_are_refused_with_the_choices(self) -> None:
        class Two(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Any:
                logits = self.logits(audio, visual)
                return {"fused": logits, "aux": logits[:, :2]}

        with pytest.raises(
            ValueError, match=r"`output=`, one of \{'fused': a tensor \(6, 4\), 'aux': a tensor \(6, 2\)"
        ):
            agm.AGM(Two(), NAMES)(**inputs(), target=TARGET)
        with pytest.raises(ValueError, match=r"none at 'logits'.*'fused'"):
            agm.AGM(Two(), NAMES, output="logits")(**inputs(), target=TARGET)

        class WithLoss(Net):
            def forward(self, audio: Tensor, visual: Tensor, labels: Tensor) -> Result:
                logits = self.logits(audio, visual)
                return Result(logits, logits, F.cross_entropy(logits, labels))

        with pytest.raises(ValueError, match="loss of its own"):
            agm.AGM(WithLoss(), NAMES)(**inputs(), labels=TARGET, target=TARGET)


class Batch:
    """A batch as an object with attributes, which knows nothing of copies."""

    def __init__(self, **held: Any) -> None:
        self.__dict__.update(held)


class TestArguments:
    @pytest.mark.parametrize("options", [{}, {"encoders": ENCODERS}, {"encoders": ENCODERS, "masked": "shared"}])
    @pytest.mark.parametrize(
        ("pack", "paths"),
        [
            (
                lambda a, v: {"audio": a, "visual": v, "id": torch.arange(len(a))},
                {"audio": "audio", "visual": "visual"},
            ),
            (lambda a, v: {"x": {"audio": a}, "views": (v, 7)}, {"audio": "x.audio", "visual": ("views", 0)}),
            (lambda a, v: [a, v], {"audio": 0, "visual": 1}),
            (lambda a, v: Batch(audio=a, visual=v, names=["x"] * len(a)), {"audio": "audio", "visual": "visual"}),
            (lambda a, v: Result(a, v), {"audio": "logits", "visual": "hidden"}),
        ],
    )
    def test_inside_a_batch(self, pack: Any, paths: Mapping[str, Any], options: dict[str, Any]) -> None:
        class Whole(Net):
            def forward(self, batch: Any) -> Tensor:
                def read(path: Any) -> Any:
                    found = batch
                    for step in (
                        path.split(".") if isinstance(path, str) else path if isinstance(path, tuple) else [path]
                    ):
                        found = getattr(found, step) if hasattr(found, str(step)) else found[step]
                    return found

                if isinstance(batch, Batch):
                    assert len(batch.names) == len(batch.audio)
                return self.logits(read(paths["audio"]), read(paths["visual"]))

        batch = pack(*inputs().values())
        model = agm.AGM(Whole(), NAMES, inputs=paths, **options)
        same_step(model, lambda: model(batch, target=TARGET), lambda o: o)
        found = agm.verify(model, {"batch": batch}, TARGET)
        assert found.ok, str(found)

    def test_a_batch_without_a_modality_is_refused(self) -> None:
        class Whole(Net):
            def forward(self, batch: Any) -> Tensor:
                return self.logits(batch["audio"], batch["visual"])

        with pytest.raises(ValueError, match=r"whole batch.*inputs=\{"):
            agm.AGM(Whole(), NAMES)
        model = agm.AGM(Whole(), NAMES, inputs={"audio": "audio", "visual": "video"})
        with pytest.raises(ValueError, match=r"`visual` at video.*\['audio', 'visual'\]"):
            model(inputs(), target=TARGET)

    def test_groups_keep_masks_and_lengths(self) -> None:
        class Text(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(9, 5)

            def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
                weights = mask.unsqueeze(-1).to(self.embedding.weight)
                return (self.embedding(ids) * weights).sum(1) / weights.sum(1)

        class Grouped(Net):
            def __init__(self) -> None:
                super().__init__()
                self.audio_net = Text().double()
                self.config = type("Config", (), {"pad_token_id": 3})()

            def forward(self, input_ids: Tensor, pixels: Tensor, attention_mask: Tensor) -> Tensor:
                features = self.audio_net(input_ids, attention_mask)
                return self.head(torch.cat([features, self.visual_net(pixels)], 1))

        ids = torch.randint(0, 9, (BATCH, 3))
        given = {
            "input_ids": ids,
            "pixels": inputs()["visual"],
            "attention_mask": (torch.arange(3) < torch.tensor([[1], [2], [3], [1], [2], [3]])).long(),
        }
        names = {"text": ("input_ids", "attention_mask"), "image": "pixels"}
        for options in ({}, {"encoders": {"text": "audio_net", "image": "visual_net"}}):
            network = Grouped()
            model = agm.AGM(network, names, **options)
            found = agm.verify(model, given, TARGET)
            assert found.ok, str(found)
            arguments = model._passes.binding.split((), given)
            absent = model._passes.absent_inputs(arguments)
            assert absent["text"]["attention_mask"] is given["attention_mask"]
            assert absent["text"]["input_ids"].tolist() == [[3, 3, 3]]
            model(**given, target=TARGET)
        filled = agm.AGM(Grouped(), names, absent={"text": {"attention_mask": 1}})
        absent = filled._passes.absent_inputs(filled._passes.binding.split((), given))
        assert absent["text"]["attention_mask"].tolist() == [[1, 1, 1]]

    @pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"encoders": ENCODERS},
            {"encoders": ENCODERS, "masked": "shared"},
            {"encoders": {"visual": "visual_net"}},
        ],
    )
    @pytest.mark.parametrize("inside", [False, True])
    def test_values_of_python_that_are_one_a_sample(self, kind: Any, options: Any, inside: bool) -> None:
        class Lengths(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 5)

            def forward(self, x: Tensor, lengths: Any = None) -> Tensor:
                x, lengths = x if lengths is None else (x, lengths)
                assert len(lengths) == len(x)
                return self.linear(x * torch.stack([torch.as_tensor(float(n)) for n in lengths]).to(x).unsqueeze(1))

        class Lengthy(Net):
            def __init__(self) -> None:
                super().__init__()
                self.audio_net = Lengths().double()

            def forward(self, audio: Any, visual: Tensor, lengths: Any = None) -> Tensor:
                features = self.audio_net(audio) if lengths is None else self.audio_net(audio, lengths)
                return self.head(torch.cat([features, self.visual_net(visual)], 1))

        lengths, given = kind([1, 2, 3, 4, 5, 6]), inputs()
        rest = {} if inside else {"lengths": lengths}
        both: dict[str, Any] = {**given, "audio": (given["audio"], lengths)} if inside else {**given}
        model = agm.AGM(Lengthy(), NAMES, **options)
        for _ in range(2):
            found = agm.verify(model, both, TARGET, arguments=rest)
            assert found.ok, str(found)
            model(**both, **rest, target=TARGET)

    def test_others_cost_nothing_unless_they_reach_an_encoder(self) -> None:
        rows: list[int] = []

        class Extra(Net):
            def forward(self, audio: Tensor, visual: Tensor, ids: Tensor, scale: Tensor | None = None) -> Tensor:
                if scale is not None:
                    audio = audio * scale
                return self.logits(audio, visual) + 0.0 * ids.unsqueeze(1)

        for masked, plain in (("shared", [BATCH + 1]), ("exact", [BATCH + 1])):
            for scale, want in ((None, plain), (torch.rand(BATCH, 1).double(), None)):
                network = Extra()
                model = agm.AGM(network, NAMES, encoders=ENCODERS, masked=masked)  # type: ignore[arg-type]
                rest = {"ids": torch.arange(BATCH), "scale": scale}
                for _ in range(2):
                    model(**inputs(), **rest, target=TARGET)
                rows.clear()
                count_rows(network.audio_net[0], rows)
                model(**inputs(), **rest, target=TARGET)
                del network.audio_net[0].forward
                assert agm.verify(model, inputs(), TARGET, arguments=rest).ok
                if want is not None:
                    assert rows == want
                else:
                    assert sum(rows) == {"shared": 2 * BATCH + 1, "exact": 3 * BATCH}[masked]

    def test_a_parameter_called_target(self) -> None:
        class Target(Net):
            def forward(self, audio: Tensor, visual: Tensor, target: float = 2.0) -> Tensor:
                return self.logits(audio, visual) * (target / 2.0)

        with pytest.raises(ValueError, match="target='labels'"):
            agm.AGM(Target(), NAMES)
        model = agm.AGM(Target(), NAMES, target="labels")
        same_step(model, lambda: model(**inputs(), labels=TARGET), lambda o: o)
        assert agm.verify(model, inputs(), TARGET).ok
        for mode in (model.train(), model.eval()):  # the network's own reaches it
            given = mode(**inputs(), target=6.0, labels=TARGET)
            torch.testing.assert_close(given, 3.0 * mode(**inputs(), labels=TARGET))

    def test_refusals(self) -> None:
        with pytest.raises(TypeError, match="`modalities` to be in an order"):
            agm.AGM(Net(), {"audio", "visual"})  # type: ignore[arg-type]
        given = inputs()
        with pytest.raises(ValueError, match=r"`audio`.*dense.*sparse.*to_dense"):
            agm.AGM(Net(), NAMES)(audio=given["audio"].to_sparse(), visual=given["visual"], target=TARGET)
        with pytest.raises(ValueError, match="`present`"):
            agm.AGM(Net(), NAMES)(audio=given["audio"], visual=None, target=TARGET)


class TestEncoders:
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_methods(self, masked: Any) -> None:
        class Clip(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.audio_net, self.visual_net = Net().audio_net, Net().visual_net

            def encode(self, audio: Tensor) -> Tensor:
                return F.normalize(self.audio_net(audio), dim=-1)

        class Wrapping(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.clip, self.head = Clip(), nn.Linear(10, CLASSES).double()

            def embed(self, visual: Tensor) -> Tensor:
                return self.clip.visual_net(visual) * 2.0

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return self.head(torch.cat([self.clip.encode(audio), self.embed(visual)], 1))

        encoders = {"audio": "clip.encode", "visual": "embed"}
        model = agm.AGM(Wrapping(), NAMES, encoders=encoders, masked=masked)
        for _ in range(2):
            found = agm.verify(model, inputs(), TARGET)
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)
        assert model.plan().count("rest of the network", BATCH) == 2 * BATCH + 1
        with pytest.raises(ValueError, match=r"no 'clip\.decode'"):
            agm.AGM(Wrapping(), NAMES, encoders={"audio": "clip.decode"})

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize("backwards", [False, True])
    def test_a_tower_that_both_share(self, masked: Any, backwards: bool) -> None:
        class Siamese(Net):
            def __init__(self) -> None:
                super().__init__()
                self.tower = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.2)).double()

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                if backwards:
                    right, left = self.tower(visual), self.tower(audio)
                else:
                    left, right = self.tower(audio), self.tower(visual)
                return self.head(torch.cat([left, right], 1))

        model = agm.AGM(Siamese(), NAMES, encoders={"audio": "tower", "visual": "tower"}, masked=masked)
        for _ in range(2):
            found = agm.verify(model, inputs(), TARGET)
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)

    def test_without_gradients_the_sum_is_kept(self) -> None:
        class Frozen(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                with torch.no_grad():
                    left = self.audio_net(audio)
                return self.head(torch.cat([left, self.visual_net(visual)], 1))

        model = agm.AGM(Frozen(), NAMES, encoders=ENCODERS)
        assert agm.verify(model, inputs(), TARGET).ok
        model(**inputs(), target=TARGET)
        assert "they sum up" in str(model.plan())


class TestEvidence:
    """What held in one batch need not hold in the next."""

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_augmentation_that_begins_later(self, masked: Any) -> None:
        class Noisy(Net):
            epoch = 0

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                if self.training and self.epoch:
                    audio = audio + torch.randn_like(audio)
                return self.logits(audio, visual)

        network = Noisy()
        model = agm.AGM(network, NAMES, encoders=ENCODERS, masked=masked)
        for step in range(4):
            network.epoch = step // 2
            found = agm.verify(model, inputs(step), TARGET)
            assert found.ok, str(found)
            model(**inputs(step), target=TARGET)

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_a_gate_that_opens_later(self, masked: Any) -> None:
        class Gated(Net):
            def __init__(self) -> None:
                super().__init__()
                self.gate = nn.Parameter(torch.zeros((), dtype=torch.float64))
                self.frozen = nn.Linear(4, 4).double().requires_grad_(False)

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                with torch.no_grad():
                    injected = self.frozen(visual)
                return self.logits(audio + torch.tanh(self.gate) * injected, visual)

        network = Gated()
        model = agm.AGM(network, NAMES, encoders=ENCODERS, masked=masked)
        for step in range(3):
            found = agm.verify(model, inputs(), TARGET)
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)
            with torch.no_grad():
                network.gate.fill_(0.5 * (step + 1))

    @pytest.mark.parametrize(
        "options", [{}, {"masked": "shared"}, {"max_rows": 5}, {"masked": "shared", "checkpoint": True}]
    )
    def test_a_forward_that_departs_from_fuse_later(self, options: dict[str, Any]) -> None:
        class Beside(Factorised):
            def __init__(self) -> None:
                super().__init__()
                self.gate = nn.Parameter(torch.zeros((), dtype=torch.float64))

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                features = {"audio": self.audio_net(audio), "visual": self.visual_net(visual)}
                return self.fuse(features) + self.gate * features["audio"][:, :CLASSES]

        network = Beside()
        model = agm.AGM(network, **options)
        for opening in (0.0, 0.5, 1.0):
            with torch.no_grad():
                network.gate.fill_(opening)
            found = agm.verify(model, inputs(), TARGET)  # the gradient of the gate too, while it is closed
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)


class TestThreads:
    def test_two_in_one_model_are_refused(self) -> None:
        network = Net()
        model = agm.AGM(network, NAMES)
        inside, release, errors = threading.Event(), threading.Event(), []
        network.head.register_forward_hook(lambda *_: (inside.set(), release.wait(20))[0])

        def step() -> None:
            model(**inputs(), target=TARGET)

        thread = threading.Thread(target=step)
        thread.start()
        assert inside.wait(20)
        try:
            with pytest.raises(RuntimeError, match="one thread at a time"):
                model.eval()(**inputs())
        finally:
            model.train()
            release.set()
            thread.join()
        assert not errors

    def test_two_models_train_side_by_side(self) -> None:
        from torch.utils.checkpoint import checkpoint

        class Checkpointed(Net):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                left = checkpoint(self.audio_net, audio, use_reentrant=False)
                return self.head(torch.cat([left, self.visual_net(visual)], 1))

        def train(model: agm.AGM, found: list[Any]) -> None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for step in range(12):
                optimizer.zero_grad()
                F.cross_entropy(model(**inputs(step), target=TARGET), TARGET).backward()
                optimizer.step()
            found.append([p.detach() for p in model.parameters()])

        original = torch.utils.checkpoint.CheckpointFunction
        alone: list[Any] = []
        train(agm.AGM(Checkpointed(), NAMES, encoders=ENCODERS), alone)
        beside: list[Any] = []
        # Made before, since they draw their weights from one generator.
        models = [agm.AGM(Checkpointed(), NAMES, encoders=ENCODERS) for _ in range(3)]
        threads = [threading.Thread(target=train, args=(model, beside)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(beside) == 3
        for weights in beside:
            torch.testing.assert_close(weights, alone[0], rtol=1e-12, atol=1e-12)
        assert torch.utils.checkpoint.CheckpointFunction is original


def normed(depth: int, eps: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(depth):
        linear = nn.Linear(4 if not place else 5, 5)
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LayerNorm(5, eps), nn.GELU()]
    return nn.Sequential(*layers)


class Factorised(Net):
    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"audio": self.audio_net, "visual": self.visual_net}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], -1))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.audio_net(audio), "visual": self.visual_net(visual)})


class TestAbsentRows:
    @pytest.mark.parametrize("kind", [Net, Factorised])
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_without_their_gradient(self, masked: Any, kind: type[Net]) -> None:
        network = kind()
        network.visual_net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.1)).double()
        encoders = ENCODERS if kind is Net else None
        model = agm.AGM(network, NAMES, encoders=encoders, masked=masked, absent_gradient=False, alpha=2.0)
        for _ in range(2):
            found = agm.verify(model, inputs(), TARGET)
            assert found.ok, str(found)
            model(**inputs(), target=TARGET)
        other = agm.AGM(network, NAMES, encoders=encoders, masked=masked, alpha=2.0)
        gradients = []
        for one in (model, other):
            one.zero_grad()
            torch.manual_seed(1)
            one(**inputs(), target=TARGET).square().sum().backward()
            gradients.append(network.audio_net[0].bias.grad.clone())
        assert float((gradients[0] - gradients[1]).abs().max()) > 1e-6

    @pytest.mark.parametrize("kind", [Net, Factorised])
    def test_kept_for_some_steps(self, kind: type[Net]) -> None:
        """Their features are those of the last refresh; the encoder is given the batch alone in between."""
        rows: list[int] = []
        network = kind()
        encoders = ENCODERS if kind is Net else None
        options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "absent_refresh": 3}
        model = agm.AGM(network, NAMES, encoders=encoders, **options)
        for _ in range(3):
            model(**inputs(), target=TARGET)
        count_rows(network.audio_net[0], rows)
        steps, masked = [], []
        model.modulator.register_forward_pre_hook(
            lambda module, args: masked.append(args[0][0] if isinstance(args[0], Tensor) else args[0].stacked()[0])
        )
        for _ in range(6):
            rows.clear()
            model(**inputs(), target=TARGET)
            steps.append(sum(rows))
            with torch.no_grad():
                network.visual_net[0].bias += 1.0  # its absent features move, but not those that are kept
        assert steps == [BATCH + 1, BATCH, BATCH] * 2
        torch.testing.assert_close(masked[0], masked[1])
        torch.testing.assert_close(masked[0], masked[2])
        assert float((masked[3] - masked[2]).abs().max()) > 1e-3
        del network.audio_net[0].forward
        assert agm.verify(model, inputs(), TARGET).ok

    @pytest.mark.parametrize("kind", [Net, Factorised])
    def test_kept_ones_open_no_way_into_a_detached_encoder(self, kind: type[Net]) -> None:
        class Detached(kind):  # type: ignore[valid-type, misc]
            def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
                return self.head(torch.cat([features["audio"], features["visual"]], -1))

            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return self.fuse({"audio": self.audio_net(audio), "visual": self.visual_net(visual).detach()})

        encoders = ENCODERS if kind is Net else None
        options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "absent_refresh": 4}
        model = agm.AGM(Detached(), NAMES, encoders=encoders, **options)
        for _ in range(3):
            model(**inputs(), target=TARGET).square().sum().backward()
            assert all(parameter.grad is None for parameter in model.module.visual_net.parameters())

    def test_a_failed_step_does_not_count(self) -> None:
        options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "absent_refresh": 2}
        model = agm.AGM(Factorised(), NAMES, **options)
        for step in range(3):
            before = model.kept.get_extra_state()
            with pytest.raises(ValueError, match="class"):
                model(**inputs(step), target=TARGET + CLASSES)
            handle = model.module.head.register_forward_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(**inputs(step), target=TARGET)
            handle.remove()
            after = model.kept.get_extra_state()
            assert after["steps"] == before["steps"] == step
            assert after["kept"].keys() == before["kept"].keys()
            assert all(after["kept"][name] is before["kept"][name] for name in before["kept"])
            model(**inputs(step), target=TARGET)

    def test_a_resumed_run_keeps_them(self) -> None:
        options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "absent_refresh": 4}
        histories = []
        for resumes in (False, True):
            model = agm.AGM(Factorised(), NAMES, **options)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
            losses = []
            for step in range(6):
                if resumes and step == 2:
                    state = model.state_dict()
                    model = agm.AGM(Factorised(), NAMES, **options)
                    model.load_state_dict(state)
                    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(**inputs(step), target=TARGET), TARGET)
                loss.backward()
                optimizer.step()
                losses.append(float(loss.detach()))
            histories.append(losses)
        assert histories[0] == histories[1]

    @pytest.mark.parametrize("kind", [Net, Factorised])
    def test_a_warning_where_their_gradient_explodes(self, kind: type[Net]) -> None:
        for eps, warns in ((1e-5, False), (1e-12, True)):
            network = kind()
            network.audio_net, network.visual_net = normed(2, eps).double(), normed(2, eps).double()
            model = agm.AGM(network, NAMES, encoders=ENCODERS if kind is Net else None, masked="shared")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model(**inputs(), target=TARGET)
                model(**inputs(), target=TARGET)
            found = [str(warning.message) for warning in caught if "absent_gradient=False" in str(warning.message)]
            assert bool(found) == warns
            assert len(found) <= 2
        calm = agm.AGM(network, NAMES, encoders=ENCODERS, masked="shared", absent_gradient=False)
        F.cross_entropy(calm(**inputs(), target=TARGET), TARGET).backward()
        assert float(nn.utils.get_total_norm([p.grad for p in calm.parameters() if p.grad is not None])) < 100

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="network of one piece"):
            agm.AGM(Net(), NAMES, absent_gradient=False)
        with pytest.raises(ValueError, match="`absent_refresh` to be 1"):
            agm.AGM(Net(), NAMES, encoders=ENCODERS, absent_refresh=2)
        with pytest.raises(ValueError, match="absent inputs are learnt"):
            agm.AGM(
                Net(),
                NAMES,
                encoders=ENCODERS,
                absent_gradient=False,
                absent={"audio": nn.Parameter(torch.zeros(4).double())},
            )
