"""What a modulation has to say, flat, as every logger takes it."""

from torch import nn

from agm.modulation.modulator import Modulator

__all__ = ["modulators", "scalars"]


def modulators(model: nn.Module) -> list[Modulator]:
    """The modulators in a model, however it is wrapped (compiled, distributed, a LightningModule ...).

    Raises:
        ValueError: there is none.
    """
    found = [module for module in model.modules() if isinstance(module, Modulator)]
    if not found:
        raise ValueError(
            f"Expected argument `model` to hold an agm.AGM or an agm.Modulator, but got a {type(model).__name__} "
            "without one. Wrap the network: agm.AGM(network, modalities)."
        )
    return found


def scalars(model: nn.Module, prefix: str = "agm/") -> dict[str, float]:
    """`Modulator.report()` by flat names, for `writer.add_scalar`, `wandb.log`, `accelerator.log`, `self.log_dict` ...

    Reading them synchronises with the device, so log at intervals.

    Args:
        model: an `agm.AGM`, an `agm.Modulator`, or a module that holds one. Several are numbered: "agm/0/audio/score".
        prefix: of every name.

    Returns:
        "agm/audio/coefficient" and so on -> number, and "agm/step", "agm/skipped": the steps taken and the skipped.

    Raises:
        ValueError: there is no modulator in `model`.
    """
    found = modulators(model)
    values: dict[str, float] = {}
    for number, modulator in enumerate(found):
        begin = prefix if len(found) == 1 else f"{prefix}{number}/"
        for modality, row in modulator.report().items():
            values.update({f"{begin}{modality}/{name}": value for name, value in row.items()})
        values[f"{begin}step"] = float(modulator.state.step)
        values[f"{begin}skipped"] = float(modulator.state.skipped)
    return values
