"""The masked passes: the network's logits for every subset of its modalities."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from agm._inputs.absent import Absent
from agm._inputs.explained import Explained
from agm._one_pass.choice import Passes
from agm._passes.masked_passes import MaskedPasses
from agm._passes.options import Masked, MaskedOptions
from agm._passes.outputs import Output
from agm._passes.record import Record
from agm.distributed import Peers
from agm.shapley.sampling import SubsetSample

__all__ = ["masked_logits"]


# What calls of the function have found out: there is no object that could keep it from one to the next.
_records: WeakKeyDictionary[nn.Module, dict[object, Record]] = WeakKeyDictionary()


def _record_of(network: nn.Module, options: MaskedOptions) -> Record | None:
    if not isinstance(network, nn.Module):
        return None
    paths = tuple((options.encoders or {}).items())
    key = (options.modalities, options.masked, paths, options.passes, options.absent_gradient, str(options.output))
    return _records.setdefault(network, {}).setdefault(key, Record())


def masked_logits(
    network: nn.Module,
    inputs: Mapping[str, Any],
    *,
    masked: Masked = "exact",
    absent: Mapping[str, Absent] | None = None,
    encoders: Mapping[str, str] | None = None,
    output: Output | None = None,
    class_dim: int | None = None,
    passes: Passes = "auto",
    max_rows: int | None = None,
    checkpoint: bool = False,
    absent_gradient: bool = True,
    arguments: Mapping[str, Any] | None = None,
    present: Tensor | None = None,
    sample: SubsetSample | None = None,
) -> Tensor:
    """The network's logits for every non-empty subset of its modalities, in one batched masked pass.

    The joint pass runs first, in the network's present mode, as without masking. In "exact" mode, which is what the
    published AGM computes, the masked passes follow in eval mode (batch norm on its running statistics,
    no dropout) with gradients, all subsets as one batch. In "shared" mode the masked passes take the joint pass's
    own features for the modalities that are present: one encoder pass in all, and the same as "exact" where no layer
    depends on the mode. Afterwards every submodule is in the mode in which it was, also when forward raises. Without
    gradients, or in eval mode, the same numbers come out.

    How much is computed:

    - a network that offers `encoders` (a mapping of modules) and `fuse(features) -> logits`, or whose encoders are
      named in `encoders`: each encoder runs on the B rows of the joint pass and besides (exact) on the B present rows
      and one absent row, or (shared) on the absent row alone. Where an absent input is not the same for every sample
      (a padding mask that stays, say) it runs on B absent rows. Of the rest, what acts on one modality, or linearly on
      several (a layer on their concatenation, a sum), runs on these few rows too; every subset is written out only
      where modalities meet in another way, and from there on. If the logits are a sum over the modalities (late fusion)
      that is nowhere, for up to 16 of them. A first batch compares this with rows written out. Compiled, a fusion is
      known to be a sum only if the network declares it by `unimodal_logits(features)`, modality -> its term;
    - any other network: one pass on the (2**M - 2) * B masked inputs (one a subset, if a batch norm without running
      statistics would mix them).

    In eval mode the network must treat samples alike and apart, for those of all subsets go through it together.
    What forward does around an encoder (`no_grad`, autocast) holds in its masked passes too, except in a compiled step.
    The network's own activation checkpointing is left out of the masked passes, and of a joint pass whose features are
    shared: what would be recomputed in the backward would not be what they had.

    An encoder need not run twice; what it has beside the B rows of the joint pass can go with these as one batch:

    - in shared mode, and in exact mode where no layer depends on the mode, the features of the joint pass are those of
      the present rows, and the absent row goes with it;
    - else, in exact mode, the B present rows and the absent one go with it.

    Where an encoder is named by path, it is one batch if forward gives it the modality's input as it is.

    In such a batch only norms, dropouts and attention tell the rows apart: the first B have the statistics of the
    batch, which update the running ones, and are dropped out; the rest come after that update, in eval mode. The joint
    logits are those of a pass by itself to rounding, since kernels may sum in another order for other numbers of rows.

    The proof is made anew in every step: the rows are followed through all functions of torch that the encoder calls,
    and those that are known to treat rows alike may pass. A function that is not known, or puts rows together, ends the
    pass; so do hooks, an activation checkpoint inside, random numbers that eval mode draws too, and state that the
    encoder keeps. What it had changed is put back, two passes follow, and `agm.AGM.plan` says why. In a chain of
    torch's own layers (nn.Sequential of linear layers, convolutions, activations ...), without hooks or subclasses and
    none of which depends on the mode, it is known what runs, and nothing is followed. Where the code of
    an encoder asks for its mode or for the number of rows (`if self.training`), a first batch shows whether the same
    functions run in eval mode, and later ones whether they still do. `passes` says what to do with it.

    An encoder in which rows may meet has its present rows and its absent ones by themselves. In two passes a first
    batch shows whether they do, and any later one in which other functions of torch run, or in another order. In the
    same way rows of several subsets are found to meet, in experts of a limited capacity, say, in attention across
    samples or statistics of the batch: a batch compares what all of them come to with passes of one subset each, and
    where that is something else each subset has a pass of its own from then on, as `agm.AGM.plan` says. Encoders answer
    there as `masked` and `absent_gradient` ask for.

    Where the same functions mix rows in some batches and not in others (a capacity that is reached at times,
    `torch.where`), a later look tells: there is one of each size of batches, and in steps 10, 20, 30, 45 and so on,
    whenever half as many have passed as before, with a warning if they meet. Where `max_rows` is less than B, halves of
    so many rows are looked at, and a warning says that they meet. Of random numbers that are drawn in eval mode nothing
    can be told. Where rows are out of sight (a compiled step, sharded parts) `agm.verify` alone tells, of the batch
    that it is given.

    A norm that exchanges statistics with other processes (`SyncBatchNorm`) exchanges those of the B rows, once a step
    forward and backward, whether its encoder has one pass or two, or leaves the one pass in its middle: processes need
    not agree. Two passes it has where absent inputs are learnt but the present ones have no gradient, where the joint
    pass leaves features of its encoder out, and in classes that derive from torch's.

    Under `torch.compile` (fullgraph=True) a training step is one graph, however encoders are named. What is lost there:
    every encoder has two passes ("exact"), or one and a pass for the absent row ("shared"); every subset is written out
    from the features on, unless the network declares a sum; no batch is looked at; what forward keeps in attributes is
    what the last masked pass has left there (buffers are as ever). Of encoders that are named by path
    a graph takes over what an eager step has found out, if there was one before it. If there was none, an encoder that
    is given its modality's input is trusted to see rows of that alone; where forward computes what it hands on, all
    rows are encoded ("exact"), or the call is refused ("shared").

    Args:
        network: a module whose forward takes the modalities by keyword, or by position in the order of `inputs` if
            it bears none of their names, and returns logits (B, C), or (B, ..., C).
        inputs: modality -> tensor (B, ...) or pytree of tensors (features with a padding mask, ids with lengths).
        masked: "exact" or "shared"; for a modality without a named encoder the latter is the former.
        output, class_dim: where the network's output holds the logits, as in `agm.AGM`.
        absent: modality -> what an absent input is: a number (a pad id), a tensor (one row), a callable of the
            present input, which returns its like or one row of it, or a pytree like the input of numbers, tensors
            and None (stays as it is). Zeros by default; in a pytree floating tensors become zeros while booleans and
            one-dimensional integers stay. In a network without known encoders a callable may be given what has no row
            a sample (a packed sequence or graph, items with offsets), beside a modality that has: it returns its like
            in which all samples lack it, and each subset has a pass of its own.
        encoders: modality -> path of the submodule that encodes it. Some modalities may be left out. An encoder may
            take and return pytrees, have its samples in any dimension, see several rows a sample (frames), and be
            called several times; it must depend on its own modality alone, which the first batch verifies.
        passes: of an encoder: "auto": one, where it is proved to be the same; "one": raises where it is not proved;
            "two": the rows of the masked passes have one of their own, as they always have where the step is compiled.
        absent_gradient: whether a gradient flows into an encoder through rows in which its modality is absent, as
            published. False: the features of absent rows are constants, for networks whose encoders are known.
        max_rows: at most so many masked rows at a time go through a network of one piece, or through `fuse` (each
            encoder still sees its rows at once). This bounds what the forward needs while it runs; what it keeps for
            the backward it keeps for all rows, unless `checkpoint` is set. None: all at once.
        checkpoint: drop the activations of each masked chunk and recompute them in the backward, in eval mode and
            with the same running statistics: together with `max_rows` only one chunk's activations live at a time,
            for one more forward of the masked rows. In a compiled graph this is left to the compiler.
        arguments: other keyword arguments of forward. Tensors in them have one row a sample, and sequences of as many
            items as there are samples (lists, tuples, deques, arrays) have an item a sample, whatever the items are and
            wherever they lie: in dicts, dataclasses and other objects with attributes. Both are repeated for the masked
            rows; what has another length stays as it is. Where that cannot be told or done it is refused: a list whose
            items have a row for each sample, a mapping with a key for each, an iterator.
        present: (B, M) bool on the device of the inputs, which samples have which modalities; None: all have all.
            Where a sample lacks one, the input is replaced by an absent one, in the joint pass too, whatever it holds.
        sample: subsets that `agm.sample_subsets` drew, to be computed instead of all.

    Returns:
        (2**M - 1, B, C): row i holds the logits of the subset with bitmask i + 1 (bit m set: modality m present), the
        last row the joint logits. (R, B, C) with a `sample` of R subsets, in its order. Logits of more dimensions keep
        them: (2**M - 1, B, ..., C).

    Raises:
        ValueError: a modality that forward does not take, a path that does not exist, inputs of different lengths, an
            encoder that is not called or mixes modalities, an output that is not logits, "shared" for a network of one
            piece with mode-dependent layers, `max_rows` < 1, or less than B where a batch norm has no running
            statistics, such a batch norm in an encoder or in a network with `encoders`, one pass that is not known to
            be right, `max_rows` or `checkpoint` together with `encoders`.
        TypeError: `network` is not a module, `inputs` no mapping, or an unexpected argument.
    """
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"Expected argument `inputs` to map modalities to their inputs, but got a {type(inputs).__name__}. "
            'Name them, for example {"audio": a, "visual": v}.'
        )
    options = MaskedOptions(
        modalities=tuple(inputs),
        masked=masked,
        absent=absent,
        encoders=encoders,
        output=output,
        class_dim=class_dim,
        passes=passes,
        max_rows=max_rows,
        checkpoint=checkpoint,
        absent_gradient=absent_gradient,
    )
    peers = Peers(False)
    record = None if torch.compiler.is_compiling() else _record_of(network, options)
    run = MaskedPasses(network, options, peers, record)
    if sample is not None and sample.modalities != len(run.modalities):
        raise ValueError(
            f"Expected argument `sample` to be of the {len(run.modalities)} modalities of `inputs`, but got one of "
            f"{sample.modalities}."
        )
    given = run.binding.split((), {**inputs, **(arguments or {})})
    with nullcontext() if torch.compiler.is_compiling() else Explained(given):
        return run.stacked(given, present, sample)
