"""Whether a module is known to treat the rows of its batch alike, whatever its mode, but for norms and dropouts.

Known are layers of torch, by an allow-list of exact types, and modules written in Python whose code can be read to the
end and names nothing that depends on the mode, draws random numbers, picks rows by their values or keeps state.
"""

import dis
import re
import types
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.utils import _pytree as pytree

from agm._module_state.modules import path_of, submodules
from agm._one_pass.row_split import DROPOUTS, NORMS

__all__ = ["why_not_row_split"]

_OF_ALL_DIMENSIONS = (
    *("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "LPPool", "MaxPool", "Conv", "ConvTranspose"),
    *("CircularPad", "ConstantPad", "ReflectionPad", "ReplicationPad", "ZeroPad"),
)
_ACTIVATIONS = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LeakyReLU, nn.LogSigmoid),
    *(nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softmax2d, nn.Softplus, nn.Softshrink),
    *(nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold),
)
_CONTAINERS = (nn.Module, nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList, nn.Sequential)
_ALIKE = frozenset(
    (
        *(getattr(nn, f"{name}{dimensions}d") for name in _OF_ALL_DIMENSIONS for dimensions in (1, 2, 3)),
        *_ACTIVATIONS,
        *_CONTAINERS,
        *(nn.Bilinear, nn.ChannelShuffle, nn.Fold, nn.GRUCell, nn.GroupNorm, nn.Identity, nn.LSTMCell, nn.LayerNorm),
        *(nn.Linear, NonDynamicallyQuantizableLinear, nn.LocalResponseNorm, nn.PixelShuffle, nn.PixelUnshuffle),
        *(nn.RMSNorm, nn.RNNCell, nn.Unfold, nn.Upsample, nn.UpsamplingBilinear2d, nn.UpsamplingNearest2d),
        *NORMS,
        *DROPOUTS,
    )
) - {nn.SyncBatchNorm}


def _is_of_a_row(dim: int | None) -> bool:
    return dim is not None and (dim > 0 or dim == -1)


def _along(layer: Any) -> str | None:
    return None if _is_of_a_row(layer.dim) else f"may work across rows (dim={layer.dim})"


def _flatten(layer: Any) -> str | None:
    return None if layer.start_dim >= 1 else f"may join rows (start_dim={layer.start_dim})"


def _embedding(layer: Any) -> str | None:
    return None if layer.max_norm is None else "renormalises its weight in every pass (max_norm)"


_SECOND = "has its samples in the second dimension (batch_first=False)"


def _recurrent(layer: Any) -> str | None:
    if not layer.batch_first:
        return _SECOND
    return "has a dropout inside" if layer.dropout and layer.num_layers > 1 else None


def _attention(layer: Any) -> str | None:
    return None if layer.batch_first else _SECOND


def _transformer_layer(layer: Any) -> str | None:
    return _attention(layer.self_attn)


def _synchronised(layer: Any) -> str | None:
    # What a process finds in a first batch by itself decides there alone, and the others would wait for it.
    alone = not torch.distributed.is_available() or not torch.distributed.is_initialized()
    return None if alone else "exchanges statistics with other processes"


# Alike if they are set so: what their settings have against it.
_SETTINGS: dict[type[nn.Module], Callable[[Any], str | None]] = {
    nn.Flatten: _flatten,
    nn.Unflatten: _along,
    nn.Softmax: _along,
    nn.LogSoftmax: _along,
    nn.Softmin: _along,
    nn.GLU: _along,
    nn.Embedding: _embedding,
    nn.RNN: _recurrent,
    nn.LSTM: _recurrent,
    nn.GRU: _recurrent,
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _transformer_layer,
    nn.SyncBatchNorm: _synchronised,
}

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_GLOBAL_HOOKS = tuple(getattr(torch_module, f"_global{name}") for name in _HOOKS)


def why_not_row_split(module: nn.Module, together: bool = False) -> str | None:
    """What stands against train rows and eval rows in one pass through `module`; None if that is proved right.

    Hooks stand against it as well: they would see other rows, and once instead of twice. So do norms that exchange
    statistics with other processes, unless these all look at the first batch `together`.
    """
    if any(_GLOBAL_HOOKS):
        return "hooks on all modules would see train rows and eval rows as one batch"
    for layer in submodules(module):
        reason = _against(layer, together)
        if reason is not None:
            name = path_of(layer, module)
            where = f"layer `{name}`" if name else "the encoder"
            return f"{where} ({type(layer).__name__}) {reason}"
    return None


def _against(layer: nn.Module, together: bool) -> str | None:
    own = layer.__dict__
    if any(own[hooks] for hooks in _HOOKS):
        return "has hooks, which would see train rows and eval rows as one batch"
    if "forward" in own:
        return "has a forward of its own in place of its class's"
    kind = type(layer)
    if kind in _ALIKE or (together and kind is nn.SyncBatchNorm):
        return None
    if kind in _SETTINGS:
        return _SETTINGS[kind](layer)
    if kind not in _read:
        _read[kind] = _against_class(kind)
    found = _read[kind]
    return found if isinstance(found, str) else _against_attributes(own, found)


# What stands against classes of users; or the names of children that would stand against them if they were no modules.
_read: WeakKeyDictionary[type[nn.Module], str | frozenset[str]] = WeakKeyDictionary()

# What code may not name: modes, random numbers, functional norms, rows picked by their values, recomputation, and
# whatever reaches all of these in ways that cannot be read.
_FORBIDDEN = re.compile(
    r"training|train|eval|is_grad_enabled|is_inference_mode_enabled|\w*dropout\w*|drop_?path|\w*drop_?connect|"
    r"\w*stochastic\w*|\w*batch_?norm\w*|instance_?norm|rand\w*|\w*random\w*|bernoulli_?|normal_?|log_normal_?|"
    r"multinomial|poisson|binomial|exponential_|uniform_?|geometric_|cauchy_|rrelu_?|fractional_max_pool\w*|"
    r"gumbel_softmax|\w*shuffle|choices?|r?sample|manual_seed|generator|masked_select|nonzero|"
    r"argwhere|unique\w*|checkpoint\w*|exec|compile|globals|locals|vars|setattr|delattr|__dict__|__import__|"
    r"import_module|register_\w*hook|named_modules|modules|apply",
    re.ASCII | re.IGNORECASE,
)
_HARMLESS = {"pixel_shuffle", "channel_shuffle"}
# Methods that no forward pass calls.
_APART = re.compile(r"__init__|__repr__|extra_repr|train|_?reset_parameters|_?init_\w*|__class_getitem__")
_READS = ("LOAD_ATTR", "LOAD_METHOD")
_LOOKUPS = ("LOAD_GLOBAL", "LOAD_NAME")
_WRITES = ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL")
_OPEN_MODULES = ("abc", "builtins", "collections", "itertools", "math", "numbers", "operator", "_operator", "typing")


def _against_class(kind: type) -> str | frozenset[str]:
    seen: set[object] = set()
    children: set[str] = set()
    for base in kind.__mro__:
        if base in (nn.Module, object) or base.__module__.split(".")[0] in _OPEN_MODULES:
            continue
        if base.__module__.split(".")[0] == "torch":
            if base in _ALIKE and base not in (*NORMS, *DROPOUTS):
                continue
            known = "is" if base is kind else f"derives from {base.__qualname__}, which is"
            return f"{known} not known to treat rows alike"
        for name, member in vars(base).items():
            if _APART.fullmatch(name):
                continue
            for function in _functions(member):
                reason = _against_function(function, seen, children)
                if reason is not None:
                    return f"cannot be proved to treat rows alike: `{base.__name__}.{name}` {reason}"
    return frozenset(children)


def _functions(member: Any) -> Iterator[Any]:
    if isinstance(member, property):
        yield from (part for part in (member.fget, member.fset, member.fdel) if part is not None)
    elif isinstance(member, (staticmethod, classmethod)):
        yield member.__func__
    elif callable(member) and not isinstance(member, type):
        yield member


def _against_function(function: Any, seen: set[object], children: set[str] | None = None) -> str | None:
    """What stands in the code of a function and of all that it calls.

    What would stand against a method unless it is a child (`self.dropout`) is added to `children`.
    """
    if not isinstance(function, types.FunctionType):
        return f"is {function!r}, whose code cannot be read"
    if function in seen:
        return None
    seen.add(function)
    own = next(iter(function.__code__.co_varnames), None) if children is not None else None
    names: set[str] = set()
    free: set[str] = set()  # those looked up in globals
    for code in _codes(function.__code__):
        before = None
        for step in dis.get_instructions(code):
            if step.opname in _WRITES:
                return "keeps state in attributes or globals"
            if step.opname.startswith("IMPORT"):
                return f"imports `{step.argval}`"
            if step.opcode in dis.hasname:
                is_own = own is not None and step.opname in _READS and _is_load_of(own, before)
                if is_own and children is not None and _is_forbidden(step.argval) and step.argval != "training":
                    children.add(step.argval)
                else:
                    names.add(step.argval)
                if step.opname in _LOOKUPS:
                    free.add(step.argval)
            before = step
        for constant in code.co_consts:  # getattr(self, "training"), and keywords of calls
            names.update(part for part in (constant if isinstance(constant, tuple) else (constant,)) if _is_name(part))
    for name in sorted(names):
        if _is_forbidden(name):
            return f"names `{name}`"
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    reached = {name: _content(cell) for name, cell in cells if name != "__class__"}
    reached |= {name: function.__globals__[name] for name in free if name in function.__globals__}
    for name, value in sorted(reached.items()):
        reason = _against_value(value, names, seen)
        if reason is not None:
            return f"uses `{name}`, which {reason}"
    return None


def _is_forbidden(name: str) -> bool:
    return _FORBIDDEN.fullmatch(name) is not None and name not in _HARMLESS


def _is_load_of(variable: str, step: dis.Instruction | None) -> bool:
    if step is None or not step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
        return False
    # Newer Pythons load two variables at once; the attribute is the second's.
    return bool((step.argval[-1] if isinstance(step.argval, tuple) else step.argval) == variable)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_name(constant: object) -> bool:
    return isinstance(constant, str) and constant.isidentifier()


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _against_value(value: Any, names: set[str], seen: set[object]) -> str | None:
    """What stands against something that code reaches by name; `names` are those that it may look up in a module."""
    if isinstance(value, types.ModuleType):
        if value.__name__.split(".")[0] in ("torch", *_OPEN_MODULES):
            return None  # by the names themselves
        found = [getattr(value, name) for name in sorted(names) if hasattr(value, name)]
        return next((reason for part in found if (reason := _against_value(part, names, seen)) is not None), None)
    if isinstance(value, nn.Module):
        return "is a module that is not registered"
    if isinstance(value, type):
        harmless = issubclass(value, (torch.Tensor, BaseException)) or _is_open(value)
        return None if harmless else f"is the class {value.__qualname__}"
    if not callable(value):
        return None
    home = getattr(value, "__module__", None) or ""
    if home.split(".")[0] == "torch" or getattr(torch, getattr(value, "__name__", ""), None) is value:
        name = getattr(value, "__name__", "")
        return f"is `{name}`" if not name or _is_forbidden(name) else None
    if _is_open(value):
        return None
    return _against_function(value, seen)


def _is_open(value: Any) -> bool:
    """Whether it comes with Python and has nothing to do with modes and random numbers."""
    home = getattr(value, "__module__", None) or ""
    return home.split(".")[0] in _OPEN_MODULES


def _against_attributes(own: dict[str, Any], children: frozenset[str]) -> str | None:
    """What the instance holds: modules that are not registered, functions that it may call."""
    for name in sorted(children):
        if name not in own["_modules"]:
            return f"cannot be proved to treat rows alike: it names `{name}`"
    for name, value in own.items():
        if name in _OF_MODULES or type(value) in _PLAIN:
            continue
        for leaf in pytree.tree_leaves(value):
            reason = _against_value(leaf, set(), set())
            if reason is not None:
                return f"cannot be proved to treat rows alike: its attribute `{name}` {reason}"
    return None


_OF_MODULES = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, type(None))
