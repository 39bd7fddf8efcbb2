"""AGM in one line: the wrapped network trains with modulated gradients and otherwise is what it was."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from agm._inputs.absent import Absent, batch_size
from agm._inputs.arguments import Arguments, Modalities
from agm._inputs.explained import Explained
from agm._inputs.learnt_absent import LearntAbsent
from agm._inputs.target_name import check_target_name
from agm._inputs.trees import leaves_of
from agm._module_state.capture import check_captured
from agm._module_state.draws import settle
from agm._module_state.generators import kept_generators
from agm._module_state.modules import submodules
from agm._module_state.structure import Structure
from agm._module_state.threads import lock_of
from agm._module_state.undo import all_or_nothing
from agm._module_state.values import first_writes, kept_surroundings, kept_values
from agm._one_pass.choice import Passes
from agm._passes.absent_features import AbsentFeaturesState
from agm._passes.head_loss import HeadLoss
from agm._passes.masked_passes import MaskedPasses
from agm._passes.options import LossName, Masked, MaskedOptions
from agm._passes.outputs import Output
from agm._passes.plan import Plan
from agm.distributed import Peers
from agm.modulation.modulator import Modulator, Outside
from agm.modulation.scores import ScoreName, find_score
from agm.modulation.surroundings import check_surroundings
from agm.shapley.sampling import SubsetSampler

__all__ = ["AGM"]


class AGM(nn.Module):
    """Wraps a network for training with Adaptive Gradient Modulation (Li et al., ICCV 2023); the loop stays as it is.

        >>> model = agm.AGM(net, ("audio", "visual"), alpha=1.5, masked="shared",
        ...                 encoders={"audio": "audio_net", "visual": "visual_net"})     # paths in net; optional
        >>> F.cross_entropy(model(audio=a, visual=v, target=y), y).backward()            # modulated gradients
        >>> model.eval()(audio=a, visual=v)                                              # the plain network

    In training mode `model(**inputs, target=y)` returns the joint logits (B, ..., C) of the network, and whatever loss
    is built on them, its gradient flows back modulated: `agm.masked_logits` computes the logits of every subset of
    modalities and `agm.fused_modulate` the coefficients. In eval mode, outside `start <= epoch < stop`, and under
    `torch.no_grad()`, the call is that of the plain network (`target` is ignored and may be left out) and the running
    scores do not change.

    Every forward in training mode is one step: it updates the running scores once. Under gradient accumulation each
    micro-batch is therefore modulated by its own coefficients. Several forwards may come before a backward: each keeps
    its own coefficients and its own copy of the running statistics of batch norm. A forward that raises leaves the
    state and the modes of all submodules as they were.

    One thread at a time: while a training step runs, which changes modes, calls of the model or of the network by other
    threads are refused. Not seen are calls of a part of the network that is no encoder, and those of a thread that was
    inside before or that began while the step ran; an evaluation beside training takes a copy.deepcopy.

    The first step verifies that named encoders receive what they should, and reads from the device for it. Later steps
    do not read from the device, and can be captured in a CUDA graph.

    `torch.compile(model, fullgraph=True)` gives one graph, and a second one when the batch size changes. A compiled
    step verifies nothing, so take an eager step before compiling. It also computes more rows than an eager one:
    `agm.masked_logits` says which.

    The state dict has the network under `module.` and the modulation under `modulator.state.`;
    `model.module.state_dict()` is that of the plain network. An absent input that is learnt (a parameter, a module in
    `absent`) is among the parameters, under `absent.`.

    Where several processes train together, each on its share of the batch, the scores are those of all samples, by one
    all-reduce of 2M + 2 numbers a step (3M + 2 with `present`), so that coefficients and state are the same everywhere:
    K processes with B / K samples each train as one with B. Every process must then take every training forward, with
    `present` or without as the others do, also on an empty batch or on ignored samples alone; in eval mode nothing is
    exchanged. Under `no_sync` each forward is a step of all processes too. Wrap the model for training:

    - `DistributedDataParallel(agm.AGM(net))`. The other way round, `agm.AGM(DistributedDataParallel(net))`, computes
      the same, but the network's own `encoders` and `fuse` are out of sight there, and what is learnt of absent inputs
      would not be averaged, which is refused.
    - `fully_shard(agm.AGM(net))`, whose encoders and other parts may be sharded before. A network with `encoders` and
      `fuse` is not sharded by itself, as `fuse` runs outside of its forward. Where a part is, all processes must take
      batches of as many chunks (`max_rows`).

    For many classes, as in language models, let the step end in the loss (`head`, `loss`)::

        >>> model = agm.AGM(llava, ("pixel_values", "input_ids"), head="lm_head", loss="causal_lm", target="labels",
        ...                 absent={"input_ids": lambda ids: torch.where(ids == image_token, ids, pad)})
        >>> model(**batch, use_cache=False).loss.backward()                  # batch has labels, -100 where none count

    Under accumulation `num_items_in_batch=n` makes it the sum of the losses over n, as in Hugging Face's models. In
    other epochs than those of the window it is the loss of the joint pass. In eval mode the output has the logits, and
    where it has room for one and the target is given, their loss. The head must be a plain `nn.Linear` without hooks,
    whose weight may be tied to the embedding's, and must return the logits as they are: a scale or a slice of them is
    refused. So are `present` in training, `subsets`, other scores, `outside="published"`, and `labels` from which the
    network would compute a loss of its own; what else it adds to its loss there (of routers, say) is not in this one.
    Where forward keeps its logits in an attribute, it keeps what the head was given.

    Args:
        network: any module that `agm.masked_logits` takes.
        modalities: their names, in bit order; or modality -> the argument of forward that carries it, or those that do
            together: {"text": ("input_ids", "attention_mask"), "image": "pixel_values"}. Where a group is absent, masks
            and lengths stay (boolean tensors, and integers named so), floating tensors become zeros and token ids the
            network's `config.pad_token_id`, or 0. May be left out for a network that offers `encoders` and `fuse`.
        alpha: strength of the modulation, >= 0; 0 is plain joint training.
        max_gap, floor, ignore_index, score, backend: as in `agm.fused_modulate`.
        masked: "exact" (masked passes in eval mode, as published) or "shared" (the joint pass's own features).
        absent: modality -> what an absent input is, as in `agm.masked_logits`.
        encoders: modality -> path of its encoder in the network, as in `agm.masked_logits`.
        inputs: modality -> where it is in the one batch that forward takes as its first argument: a key, an index, an
            attribute, or a path of these, "views.0" or ("views", 0). Dicts, lists, dataclasses and other objects with
            attributes are copied, not written to.
        output: where the network's output holds the logits: a key, an index, a path of these, or a function that picks
            them. None: the output itself, or its `logits`. A scalar beside them may be an auxiliary loss (of features,
            of routers); one that is computed from the logits has a gradient that passes by the modulation, and is
            refused, and so are losses of each sample (`reduction="none"`). Other numbers of the logits, one a sample,
            are warned of. Of a loss that forward keeps in an attribute `plan` and `agm.verify` tell.
        class_dim: the dimension of the classes, where it is not the last: 1 for (B, C, H, W).
        target: the name under which a call takes the targets, for networks whose forward has a `target` of its own.
        passes: of each encoder: "auto", "one" or "two", as in `agm.masked_logits`.
        max_rows, checkpoint: bounds of the memory of the masked passes, as in `agm.masked_logits`.
        absent_gradient: whether a gradient flows into an encoder through rows in which its modality is absent, as
            published. False: the features of an absent modality are constants of a step.
        absent_refresh: with masked="shared" and absent_gradient=False, of an absent input that does not change: its
            features are computed in every so many steps only, and kept in between; in a step that is compiled or
            captured in a CUDA graph always.
        subsets: how many proper subsets a step may evaluate, at least 2 (M - 1): others are drawn in every step, as by
            `agm.sample_subsets`, and the responses are estimates. None: all 2**M - 2. A fusion that is a sum over the
            modalities needs none and is exact. Compiled, the drawing breaks the graph; captured in a CUDA graph, it is
            refused.
        seed: of the draws.
        head: path of the network's head, a module that forward calls once and whose output is the logits. Without
            `loss` it declares that the modalities, whose encoders are known, add up in there: a linear layer on their
            joined features, or a sum of layers of one each. Such a sum is recognised on the first batch anyway; if it
            is declared, `plan` knows of it before, and an error is raised where the first batch shows that the logits
            are no such sum. A compiled step writes every subset out all the same. With `loss` it is the `nn.Linear` of
            which the loss is computed.
        loss: None: a call returns logits. "cross_entropy", or "causal_lm" for labels (B, T) that are the tokens
            themselves, as Hugging Face's causal models take them: a training step returns the network's output with
            the mean cross-entropy as its `loss`, modulated, and None as its logits, and where a network returns the
            logits alone, the loss. It is `agm.fused_modulate_linear_cross_entropy` of what the head is given for every
            subset, so that neither masked nor joint logits are ever made whole. See above.
        start: first epoch that is modulated; set `epoch` then, also after resuming, for it is not in the state dict.
        stop: first epoch that no longer is; None for no end.
        outside: what a training step in another epoch does, as in `agm.Modulator`: "joint": the joint pass alone, and
            no score is taken; "published", as the authors' code: scores are taken in every epoch, at the cost of the
            masked passes, and the coefficients are 1 before `start` and stay those of the last step from `stop` on.
        process_group: of the processes that train together. None: the default group wherever `torch.distributed` is
            initialised with more than one process; False: each process by itself.

    Attributes:
        module: the network; it may be replaced by a wrapper of itself.
        modulator: the `agm.Modulator`; `modulator.report()` gives the last step in numbers.

    Raises:
        ValueError: a modality that forward does not take, an encoder path that does not exist, an impossible setting.
        TypeError: `network` is not a module, an encoder is not given by its path, or `process_group` is neither a
            ProcessGroup nor None nor False.
    """

    def __init__(
        self,
        network: nn.Module,
        modalities: Modalities | None = None,
        *,
        alpha: float = 1.0,
        max_gap: float | None = 10.0,
        floor: float = 1e-8,
        ignore_index: int = -100,
        score: ScoreName = "cross_entropy",
        masked: Masked = "exact",
        absent: Mapping[str, Absent] | None = None,
        encoders: Mapping[str, str] | None = None,
        inputs: Mapping[str, Any] | None = None,
        output: Output | None = None,
        class_dim: int | None = None,
        target: str = "target",
        passes: Passes = "auto",
        max_rows: int | None = None,
        checkpoint: bool = False,
        absent_gradient: bool = True,
        absent_refresh: int = 1,
        subsets: int | None = None,
        seed: int = 0,
        head: str | None = None,
        loss: LossName | None = None,
        start: int = 0,
        stop: int | None = None,
        outside: Outside = "joint",
        process_group: ProcessGroup | Literal[False] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if isinstance(network, AGM):
            raise TypeError(
                "Expected argument `network` to be a network, but got an agm.AGM, which has one. Use it as it is, or "
                "wrap its network anew: agm.AGM(model.module, ...)."
            )
        self._options = MaskedOptions(
            modalities=modalities,
            masked=masked,
            absent=absent,
            encoders=encoders,
            inputs=inputs,
            output=output,
            class_dim=class_dim,
            passes=passes,
            max_rows=max_rows,
            checkpoint=checkpoint,
            absent_gradient=absent_gradient,
            absent_refresh=absent_refresh,
            head=head,
            loss=loss,
        )
        peers = Peers(process_group)
        self._passes = MaskedPasses(network, self._options, peers)
        self._has_stepped = False
        if modalities is None:  # so that they stay these, whatever network takes this one's place
            self._options = replace(self._options, modalities=self._passes.modalities)
        self._target_name = check_target_name(network, target, takes=loss is not None)
        self.kept = AbsentFeaturesState(self._passes.absent_features) if absent_refresh > 1 else None
        self.sampler = None if subsets is None else SubsetSampler(len(self._passes.modalities), subsets, seed)
        self.module = network
        self.absent = LearntAbsent(self._passes.absent)
        if not absent_gradient and (learnt := dict(self.absent.items())):
            raise ValueError(
                "Expected argument `absent_gradient` to be True where absent inputs are learnt, by that gradient, but "
                f"got False, and {list(learnt)} are."
            )
        if isinstance(network, DistributedDataParallel) and next(self.absent.parameters(), None) is not None:
            raise ValueError(
                "Expected a network without DistributedDataParallel where absent inputs are learnt, since their "
                "gradients would not be averaged. Wrap the model instead: DistributedDataParallel(agm.AGM(network))."
            )
        self.modulator = Modulator(
            self._passes.modalities,
            alpha=alpha,
            max_gap=max_gap,
            floor=floor,
            ignore_index=ignore_index,
            score=score,
            start=start,
            stop=stop,
            outside=outside,
            backend=backend,
        )
        self.modulator.peers = peers
        self._loss = None if loss is None else HeadLoss(loss, self._passes, self.modulator, subsets)
        # Where the network is already; later `.to` moves both.
        placed = next(chain(network.parameters(), network.buffers()), None)
        if placed is not None and not placed.is_meta:
            self.modulator.state.to(placed.device)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Their names, in bit order."""
        return self._passes.modalities

    @property
    def loss(self) -> LossName | None:
        """The loss in which a training step ends; None: it returns the logits."""
        return None if self._loss is None else self._loss.name

    @property
    def epoch(self) -> int:
        """The current epoch, from 0; set it at the start of each epoch if there is a window."""
        return self.modulator.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self.modulator.epoch = epoch

    def forward(self, *args: Any, target: Tensor | None = None, present: Tensor | None = None, **kwargs: Any) -> Any:
        """Joint logits (B, ..., C), or the network's output in its own structure with the modulated logits in it.

        With `loss`, in training: the output with the loss in it, as the class says.

        Args:
            args, kwargs: what the network's forward takes; the modalities by keyword, or by position as there. What is
                no modality is repeated for the masked rows as in `agm.masked_logits`; earlier batches tell of what has
                the number of the samples by chance (an image size in a last batch of two).
            target: (B,) class indices, or what `score` takes; needed in training.
            present: (B, M) bool, which samples have which modalities, a column each in their order; None: all have all.
                Where a sample lacks one, whatever its input holds is replaced by an absent one, in eval mode too; in
                training it counts in no score of that modality, as in `agm.fused_modulate`. Batch norm in training mode
                sees the absent inputs among the others.

        Raises:
            ValueError: a modality or the target is missing, or inputs do not fit together; as `agm.masked_logits` and
                `agm.fused_modulate`.
        """
        if self._target_name != "target":
            if target is not None:  # the network's own
                kwargs["target"] = target
            target = kwargs.pop(self._target_name, None)
        modulates = self.training and self.modulator.active
        if torch.compiler.is_compiling():
            return self._call(args, kwargs, target, present, modulates)
        with lock_of(self.module):
            return self._call(args, kwargs, target, present, modulates)

    def _call(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any, present: Tensor | None, modulates: bool
    ) -> Any:
        if self._loss is None:
            return self._step(args, kwargs, target, present, modulates)
        items = kwargs.pop("num_items_in_batch", None)
        if modulates or (self.training and target is not None):
            return self._step(args, kwargs, target, present, True, items)
        output = self._step(args, kwargs, None, present, False)
        if target is None:
            return output
        return self._loss.beside(self._passes.outputs, output, target, self.modulator.ignore_index, items)

    def _step(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Any,
        present: Tensor | None,
        modulates: bool,
        items: Any = None,
    ) -> Any:
        self._follow()
        if not modulates and present is None and self._passes.binding.is_verbatim(args):
            return self.module(*args, **kwargs)
        for name, value in self.absent.items():
            self._passes.absent[name] = value  # loading may have put another in its place
        arguments = self._passes.binding.split(args, kwargs)
        if not modulates:
            return self._passes.joint(arguments, present)
        self._check(arguments.inputs, target)
        if torch.compiler.is_compiling():
            return self._modulated(arguments, target, present, items)
        check_captured(None if self.sampler is None else self.sampler.subsets, self._has_stepped)
        structure = self._passes.structure()
        if structure is not None:
            structure.left = None
        before, writes = self._as_before(structure), None
        if structure is not None and structure.tensors.moving is None and (writes := first_writes(structure)):
            before.append(writes.put_back)
        with all_or_nothing(kept_surroundings()), all_or_nothing(*before), Explained(arguments):
            if writes is None:
                output = self._modulated(arguments, target, present, items, structure)
            else:
                with writes:
                    output = self._modulated(arguments, target, present, items, structure)
        if structure is not None and structure.left is not None:
            settle(structure)
        if not self._has_stepped:
            self._has_stepped = True
        return output

    def _modulated(
        self,
        arguments: Arguments,
        target: Any,
        present: Tensor | None,
        items: Any,
        structure: Structure | None = None,
    ) -> Any:
        if self._loss is not None:
            if present is not None:
                raise ValueError(
                    "Expected argument `present` to be None in a training step with `loss`, but got a tensor: its "
                    "kernel takes samples that have all modalities. Give inputs that are absent as such, or leave "
                    "`loss` out."
                )
            return self._loss.step(self._passes, self.modulator, arguments, target, items, structure)
        sample = None if self.sampler is None else self.sampler()
        output, masked, rows = self._passes.step(arguments, present, sample, structure)
        joint = self._passes.outputs.logits(output)
        if joint.dim() > 2:
            self._passes.outputs.warn_of_classes(joint, target)
        stacked = self._passes.put_together(joint, masked, rows)
        logits = self.modulator(stacked, target, present=present, sample=sample)
        if self.sampler is not None:
            self.sampler.draws += 1
        return logits if output is joint else self._passes.outputs.put(output, logits)

    def _as_before(self, structure: Structure | None) -> list[Callable[[], None]]:
        """What puts back all that a failed step may have moved: statistics, generators, and the state."""
        sampler, draws = self.sampler, 0 if self.sampler is None else self.sampler.draws
        features = self._passes.absent_features
        kept = features.state()

        def put_back_own() -> None:
            features.load(kept)
            if sampler is not None:
                sampler.draws = draws

        modulator = self.modulator
        state = modulator.state
        own = [state.values, state.counts, state.seen]
        assert structure is not None
        generators = kept_generators(state.values.device)
        return [put_back_own, kept_values(structure, submodules(modulator), own), generators]

    def plan(self) -> Plan:
        """What a training step computes: which rows go through which part of the network, in which mode, and why.

        Returns:
            An `agm.Plan`; `print(model.plan())` explains it in words, its `lines` hold the numbers of rows. Before
            the first step it is what will be unless a batch shows that an encoder's rows cannot be told apart in one
            pass (see `passes`).

        Raises:
            ValueError: a training step would refuse the network.
        """
        self._follow()
        plan = self._passes.plan(None if self.sampler is None else self.sampler.rows())
        if self._loss is not None:
            plan = replace(plan, notes=(*plan.notes, self._loss.note(self._passes)))
        start, stop = self.modulator.start, self.modulator.stop
        if (start, stop) == (0, None) or self.modulator.outside == "published":
            return plan
        window = f"from epoch {start} on" if stop is None else f"in epochs {start} to {stop - 1}"
        window = f"Only {window}; in the others the joint pass alone." if start != stop else "In no epoch."
        return replace(plan, notes=(*plan.notes, window))

    def _follow(self) -> None:
        """The masked passes of the network that is there now: the user may have put another in its place."""
        if self._passes.network is not self.module:
            kept = self._passes.absent_features
            self._has_stepped = False
            self._passes = MaskedPasses(self.module, self._options, self.modulator.peers, absent_features=kept)

    def _check(self, inputs: Mapping[str, Any], target: Tensor | None) -> None:
        """What can be wrong with a batch before anything has been computed."""
        check_surroundings()
        if target is None:
            raise ValueError(
                "Expected argument `target` to hold the batch's targets in training mode, but got None. "
                "Call model(..., target=y), or model.eval() for inference."
            )
        devices = [leaf.device for leaf in leaves_of(inputs) if isinstance(leaf, Tensor)]
        device = devices[0] if devices else None
        state = self.modulator.state.values
        if device != state.device:
            raise ValueError(
                f"Expected the inputs to be on {state.device}, where the state of AGM is, but they are on {device}. "
                "Move the whole model with model.to(device), or the inputs."
            )
        score, batch = find_score(self.modulator.score), batch_size(inputs)
        score.check_batch(target, batch, state.device)
