"""Networks as people have them: what they return, and what they take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm

from .plain_network import BATCH, CLASSES, ENCODERS, NAMES, TARGET, Net, count_rows, inputs, same_step


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


OUTPUTS: list[tuple[Any, Any, Callable[[Any], Tensor]]] = [
    (lambda z: (z, z.detach().sum()), 0, lambda o: o[0]),
    (lambda z: [z.detach().sum(), z], 1, lambda o: o[1]),
    (lambda z: {"logits": z, "norm": z.detach().norm()}, None, lambda o: o["logits"]),
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
                count_rows(network.audio_net[0], rows)
                for _ in range(2):  # the first finds another layer there, at whose rows it looks
                    rows.clear()
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
