"""Threads that train."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import agm

from .plain_network import ENCODERS, NAMES, TARGET, Net, inputs


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
