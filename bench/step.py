"""What a training step with AGM costs over a joint one: time, peak memory, rows through the encoders.

Every variant does the whole step (forward, cross-entropy, backward, SGD with momentum) on one and the same network.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from bench.cases import Built, Case, Notes, Options
from bench.counting import EncoderPasses, synchronisations
from bench.memory import resident, step_peak
from bench.networks import NETWORKS, Network
from bench.rivals import Compiled, ParameterScaling, Sequential, Vectorised
from bench.shared import samples

BASELINE = "joint"
OWN = ("exact", "exact-one", "shared", "refreshed", "sampled")
ASKED_FOR = {"exact-one", "refreshed"}  # not measured otherwise
# Those that compute what `exact` does.
SAME = ("sequential", "vectorised", "compiled", "exact-one")
RIVALS = ("sequential", "vectorised", "compiled", "parameter-scaling")
COEFFICIENT_TOLERANCE = 1e-3  # of whole networks, whose float32 convolutions depend on the size of the batch
LEARNING_RATE = 1e-5  # nothing is to be learnt


@dataclass
class Step:
    """One variant of a training step.

    Attributes:
        forward: inputs -> joint logits.
        coefficients: those of the last forward; None for joint training.
        between: what comes between backward and the optimizer's step, if anything.
    """

    forward: Callable[[], Tensor]
    coefficients: Callable[[], Any] | None = None
    between: Callable[[], None] | None = None


@dataclass
class Training:
    """A network in training, and the variants of its step.

    Attributes:
        network, optimizer: which all variants share: what they compute is much alike, and copies of a large network
            would not fit.
        plans: variant -> `model.plan()` of those that are AGM.
    """

    network: Any
    inputs: Mapping[str, Tensor]
    target: Tensor
    steps: dict[str, Step]
    optimizer: torch.optim.Optimizer
    plans: dict[str, Any]

    def run(self, variant: str) -> None:
        step = self.steps[variant]
        self.optimizer.zero_grad()
        F.cross_entropy(step.forward(), self.target).backward()
        if step.between is not None:
            step.between()
        self.optimizer.step()

    @property
    def batch(self) -> int:
        return len(self.target)


def cases(options: Options) -> Iterator[Case]:
    names = options.networks or tuple(name for name, net in NETWORKS.items() if net.quick or not options.quick)
    for name in names:
        network = NETWORKS[name]
        for fusion, count in selected(network, options):
            yield case(network, fusion, count, options)


def selected(network: Network, options: Options) -> list[tuple[str, int]]:
    """(fusion, modalities) to measure: the network's own that are asked for, or all that is asked for by both."""
    if options.fusions and options.modalities:
        return [(fusion, count) for fusion in options.fusions for count in options.modalities]
    found = [
        (fusion, count)
        for fusion, count in network.cases
        if (not options.fusions or fusion in options.fusions)
        and (not options.modalities or count in options.modalities)
    ]
    return [(f, m) for f, m in found if m == 2] if options.quick and not options.modalities else found


def case(network: Network, fusion: str, count: int, options: Options) -> Case:
    batch = options.batch or (network.batch if options.device.type == "cuda" else network.batch_on_cpu)
    facts = {
        "op": "step",
        "network": network.name,
        "fusion": fusion,
        "modalities": count,
        "batch": batch,
        "shape": f"M={count} B={batch} C={network.classes}",
        "dtype": "float32",
    }

    def build() -> Built:
        training = prepare(network, fusion, count, batch, options)
        check(training)
        return Built({name: _runner(training, name) for name in training.steps}, lambda: notes(training))

    return Case(facts, BASELINE, OWN, build)


def _runner(training: Training, name: str) -> Callable[[], None]:
    return lambda: training.run(name)


def prepare(network: Network, fusion: str, count: int, batch: int, options: Options) -> Training:
    """The network with the variants that are asked for; without a choice those that the network bears."""
    torch.manual_seed(0)
    module = network.build(fusion, count).to(options.device)
    inputs, target = network.inputs(count, batch, options.device)
    settings: dict[str, Any] = {"alpha": network.alpha, "max_gap": network.max_gap}
    arguments = module, tuple(inputs), network.alpha, network.max_gap
    wanted = [name for name in _names(network, fusion, count, options) if name == BASELINE or options.takes(name)]
    steps, plans = {}, {}
    for name in wanted:
        if name == BASELINE:
            steps[name] = Step(lambda: module(**inputs))
        elif name in RIVALS:
            steps[name] = _rival(name, arguments, inputs, target)
        else:
            model = agm.AGM(module, **settings, **_form(name, count)).to(options.device)
            steps[name] = _step(model, inputs, target)
            plans[name] = model.plan
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=0.9)
    return Training(module, inputs, target, steps, optimizer, plans)


def _form(name: str, count: int) -> dict[str, Any]:
    """Arguments of `agm.AGM`; "sampled" is "shared" with the fewest subsets that can be drawn: two permutations.

    The median step of "refreshed" is one that keeps the features of absent rows: fifteen in sixteen.
    """
    forms: Mapping[str, dict[str, Any]] = {
        "exact": {},
        "exact-one": {"passes": "one"},
        "shared": {"masked": "shared"},
        "refreshed": {"masked": "shared", "absent_gradient": False, "absent_refresh": 16},
        "sampled": {"masked": "shared", "subsets": 2 * (count - 1)},
    }
    return forms[name]


def _names(network: Network, fusion: str, count: int, options: Options) -> list[str]:
    few = count <= network.most_rivals
    rivals = [name for name in RIVALS if name in options.variants or (few and not options.quick)]
    if options.quick and few and "sequential" not in rivals:
        rivals.insert(0, "sequential")
    left_out = ASKED_FOR - set(options.variants)
    if fusion == "late" or count == 2 or options.quick:  # of a sum, and of two modalities, no subset is left out
        left_out.add("sampled")
    return [BASELINE, *rivals, *(name for name in OWN if name not in left_out)]


def _step(model: agm.AGM, inputs: Mapping[str, Tensor], target: Tensor) -> Step:
    return Step(lambda: model(**inputs, target=target), lambda: model.modulator.state.coefficients)


def _rival(name: str, arguments: tuple[Any, ...], inputs: Mapping[str, Tensor], target: Tensor) -> Step:
    kinds: Mapping[str, Any] = {
        "sequential": Sequential,
        "vectorised": Vectorised,
        "compiled": Compiled,
        "parameter-scaling": ParameterScaling,
    }
    rival = kinds[name](*arguments)
    between = rival.scale if isinstance(rival, ParameterScaling) else None
    return Step(lambda: rival(target, **inputs), lambda: rival.coefficients, between)


def check(training: Training) -> None:
    """That the variants which should compute the same step do: one forward each, from the same weights and seed.

    Raises:
        RuntimeError: one has other coefficients than `exact`.
    """
    same = [name for name in SAME if name in training.steps]
    dropouts = [m for m in training.network.modules() if getattr(m, "dropout", None) or isinstance(m, nn.Dropout)]
    if dropouts and training.target.device.type == "cuda":
        same = []  # train rows and eval rows as one batch are dropped out at other places
    if "exact" not in training.steps or not same:
        return
    buffers = {name: buffer.clone() for name, buffer in training.network.named_buffers()}
    found = {}
    for name in ("exact", *same):
        torch.manual_seed(0)
        step = training.steps[name]
        step.forward()
        assert step.coefficients is not None
        found[name] = torch.as_tensor(step.coefficients(), dtype=torch.float64).cpu().clone()
        for key, buffer in training.network.named_buffers():
            buffer.copy_(buffers[key])
    for name in same:
        if not torch.allclose(found[name], found["exact"], rtol=COEFFICIENT_TOLERANCE, atol=0):
            raise RuntimeError(
                f"Expected {name} to compute the coefficients of exact, {found['exact'].tolist()}, but it computed "
                f"{found[name].tolist()}: their times cannot be compared."
            )


def notes(training: Training) -> Notes:
    """Of each variant: peak memory, calls of and rows through the encoders, on a GPU launches and synchronisations."""
    found: Notes = {}
    for name in training.steps:
        if name == BASELINE or name in OWN:
            training.run(name)  # what the first step alone does is not counted: momentum, a verification
        found[name] = _passes_and_memory(training, name)
        if training.target.device.type == "cuda":
            call = _runner(training, name)
            found[name] |= {"launches": len(samples.kernels_of(call)), "synchronisations": synchronisations(call)}
    joint = found[BASELINE]
    for row in found.values():
        row["memory_ratio"] = row["peak_bytes"] / joint["peak_bytes"]
        row["encoder_ratio"] = sum(row["encoder_rows"].values()) / sum(joint["encoder_rows"].values())
    return found


def _passes_and_memory(training: Training, name: str) -> dict[str, Any]:
    """Both from one step, since those of the rivals take long."""
    training.optimizer.zero_grad()
    momenta = [value for state in training.optimizer.state.values() for value in state.values()]
    stays = [*training.network.parameters(), *training.network.buffers(), *training.inputs.values()]
    stays += [value for value in momenta if isinstance(value, Tensor)]
    with EncoderPasses(training.network.encoders) as counted:
        peak = step_peak(_runner(training, name), training.target.device)
    return {
        "encoder_calls": {modality: len(rows) for modality, rows in counted.rows.items()},
        "encoder_rows": {modality: sum(rows) for modality, rows in counted.rows.items()},
        "peak_bytes": resident(stays) + peak,
    }


def extras(row: Mapping[str, Any]) -> str:
    launches = f"{row['launches']:6d} launches {row['synchronisations']:4d} syncs" if "launches" in row else ""
    return f"memory {row['memory_ratio']:5.2f}  encoder rows {row['encoder_ratio']:6.2f} {launches}"
