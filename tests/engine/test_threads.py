"""Threads that train."""

import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm

from .plain_network import CLASSES, ENCODERS, NAMES, OPTIONS, TARGET, Factorised, Net, inputs


def options_of(make: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Without paths where the network offers its encoders."""
    return options if make is Net else {name: value for name, value in options.items() if name != "encoders"}


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

    def test_two_models_of_one_network_are_refused(self) -> None:
        network = Net()
        models = [agm.AGM(network, NAMES, encoders=encoders) for encoders in (None, ENCODERS)]
        inside, release = threading.Event(), threading.Event()
        network.head.register_forward_hook(lambda *_: (inside.set(), release.wait(20))[0])
        thread = threading.Thread(target=lambda: models[0](**inputs(), target=TARGET))
        thread.start()
        assert inside.wait(20)
        try:
            with pytest.raises(RuntimeError, match=r"several of one network.*copy\.deepcopy"):
                models[1](**inputs(), target=TARGET)
        finally:
            release.set()
            thread.join()

    @pytest.mark.parametrize("make", [Net, Factorised])
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_the_plain_network_in_another_thread_breaks_nothing(self, options: dict[str, Any], make: Any) -> None:
        network = make()
        model = agm.AGM(network, NAMES, **options_of(make, options))
        model(**inputs(), target=TARGET)
        stop, said = threading.Event(), set()

        def read() -> None:
            while not stop.is_set():
                try:
                    with torch.no_grad():
                        network(**inputs())
                except RuntimeError as error:
                    said.add(str(error).partition(",")[0])

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        thread = threading.Thread(target=read)
        thread.start()
        try:
            expected = network(**inputs())
            for _ in range(150):
                assert torch.equal(model(**inputs(), target=TARGET), expected)
        finally:
            stop.set()
            thread.join()
            sys.setswitchinterval(interval)
        assert said <= {"Expected one thread at a time in a network that trains"}
        assert not [name for name, module in network.named_modules() if "forward" in vars(module)]
        assert torch.equal(network.eval()(**inputs()), expected)

    @pytest.mark.parametrize("make", [Net, Factorised])
    @pytest.mark.parametrize("mode", ["joint", "masked"])
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_the_plain_network_is_refused_to_others_in_every_pass(
        self, options: dict[str, Any], mode: str, make: Any
    ) -> None:
        network = make()
        network.head = head = Waiting(10, CLASSES).double()
        model = agm.AGM(network, NAMES, **options_of(make, options))
        model(**inputs(), target=TARGET)
        expected = network(**inputs())

        def step() -> None:
            head.thread, head.waits_in = threading.get_ident(), mode
            head.outputs.append(model(**inputs(), target=TARGET))

        thread = threading.Thread(target=step)
        thread.start()
        assert head.inside.wait(20)
        try:
            with pytest.raises(RuntimeError, match="one thread at a time in a network that trains"):
                network(**inputs())
        finally:
            head.release.set()
            thread.join()
        torch.testing.assert_close(head.outputs, [expected])
        assert torch.equal(network(**inputs()), expected)
        assert "forward" not in vars(network)

    def test_a_thread_that_only_waits_changes_nothing(self) -> None:
        """As those of data loaders and progress bars do: nothing of the network is looked at anew."""
        model = agm.AGM(Net(), NAMES)
        model(**inputs(), target=TARGET)
        known = model._passes.structure()
        done = threading.Event()
        thread = threading.Thread(target=done.wait)
        thread.start()
        try:
            for _ in range(2):
                model(**inputs(), target=TARGET)
                assert model._passes.structure() is known
        finally:
            done.set()
            thread.join()


class Waiting(nn.Linear):
    """Waits in one pass of one thread's step."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.waits_in, self.thread = "", 0
        self.outputs: list[Tensor] = []
        self.inside, self.release = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if self.waits_in == ("joint" if self.training else "masked") and self.thread == threading.get_ident():
            self.inside.set()
            assert self.release.wait(20)
        return super().forward(x)
