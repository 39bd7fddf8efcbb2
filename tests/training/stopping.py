"""Ends a training run where it is told to."""

from agm.training import training_loop


class Stop(Exception):
    pass


class StopAt(training_loop.Observer):
    """Ends a run as Ctrl-C would: at a step, counted over the run, or after an epoch."""

    def __init__(self, step: int | None = None, epoch: int | None = None) -> None:
        self.steps, self.step, self.epoch = 0, step, epoch

    def stepped(self) -> None:
        self.steps += 1
        if self.steps == self.step:
            raise Stop

    def epoch_finished(self, row) -> None:
        if row["epoch"] == self.epoch:
            raise Stop
