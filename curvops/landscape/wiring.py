"""Find the hidden units of a module that may be renumbered, from the graph of its forward pass.

A linear layer or a convolution ends one group of units and begins another. What acts on every unit
by itself passes them on; a normalisation adds its own parameters to their group; a sum, such as a
residual connection, makes two groups one. Inputs and outputs stay in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from curvops.errors import InputError
from curvops.landscape.permutation import Axis

_REMEDY = (
    "Say yourself which axes are permuted together, for example groups="
    '{"hidden": [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]}.'
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)

# Functions, methods and modules that treat every unit alike and by itself, or only change the shape
# around them, as :func:`_name` calls them. Whether shapes were read rightly is tried out by whoever
# aligns.
_PASSED_ON = {
    *("identity", "dropout", "alphadropout", "contiguous", "clone", "float", "double", "to"),
    *("relu", "relu6", "leakyrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh"),
    *("sigmoid", "logsigmoid", "softplus", "softsign", "tanhshrink", "hardtanh", "hardswish"),
    *("hardsigmoid", "hardshrink", "softshrink", "threshold", "softmax", "logsoftmax"),
    *("abs", "neg", "exp", "square", "pow", "clamp"),
    *("flatten", "view", "reshape", "squeeze", "mean", "interpolate", "upsample", "pad"),
    *("maxpool", "avgpool", "adaptiveavgpool", "adaptivemaxpool"),
    *("zeropad", "constantpad", "reflectionpad", "replicationpad"),
}
_JOINED = {"add", "iadd", "sub", "isub", "mul", "imul", "truediv", "div"}
_NO_TENSOR = {"size", "dim", "numel"}
_NO_TENSOR_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}


class Wire(NamedTuple):
    """What runs along the channels of an intermediate value.

    Attributes:
        group: The set that its units belong to.
        size: How many there are; ``None`` for those of an input, which nobody counts.
    """

    group: int
    size: int | None


def permutation_groups(module: nn.Module) -> dict[str, tuple[Axis, ...]]:
    """Return the groups of hidden units of a module that may be permuted.

    Args:
        module: Linear layers, convolutions, normalisations, poolings and what acts on each unit
            by itself, in sequence or with residual sums. It is traced, not run.

    Returns:
        The axes of each group, parameters and buffers, by the tensor that produces its units.

    Raises:
        InputError: If the module does something else, or cannot be traced.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
        >>> for name, axes in permutation_groups(net).items():
        ...     print(name, [tuple(axis) for axis in axes])
        0.weight [('0.weight', 0, 1), ('0.bias', 0, 1), ('3.weight', 1, 9)]
    """
    try:
        graph = fx.Tracer().trace(module)
    except Exception as error:  # tracing runs the module's own code on stand-ins
        raise InputError(
            f"the forward pass of {type(module).__name__} cannot be traced ({error}), so its "
            f"hidden units cannot be told. {_REMEDY}"
        ) from error
    return _Wiring(module).groups(graph)


class _Wiring:
    """Follow the units through a graph, joining sets of axes."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        named: Iterable[tuple[str, Tensor]] = [
            *module.named_parameters(),
            *module.named_buffers(),
        ]
        self._names = {id(tensor): name for name, tensor in named}
        self._parents = [0]
        self._fixed = 0
        self._axes: dict[tuple[str, int], tuple[int, int]] = {}

    def groups(self, graph: fx.Graph) -> dict[str, tuple[Axis, ...]]:
        """Return the sets of axes that no input and no output holds in order."""
        wires: dict[fx.Node, Wire | None] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                wires[node] = Wire(self._fixed, None)
            elif node.op == "output":
                for value in node.all_input_nodes:
                    self._fix(wires[value])
            else:
                wires[node] = self._through(node, wires)
        found: dict[int, list[Axis]] = {}
        for (name, axis), (group, block) in self._axes.items():
            root = self._root(group)
            if root != self._root(self._fixed):
                found.setdefault(root, []).append(Axis(name, axis, block))
        return {axes[0].tensor: tuple(axes) for axes in found.values()}

    def _through(self, node: fx.Node, wires: dict[fx.Node, Wire | None]) -> Wire | None:
        """Return the wire behind a node."""
        inputs = [w for w in (wires[n] for n in node.all_input_nodes) if w is not None]
        if node.op == "get_attr":
            self._refuse_tensor(node)
            return None
        if node.op == "call_module":
            if len(inputs) != 1:
                raise self._unknown(f"{node.target!r} with {len(inputs)} inputs that are followed")
            layer = self._module.get_submodule(str(node.target))
            return self._layer(layer, str(node.target), inputs[0])
        name = _name(node.target if isinstance(node.target, str) else node.target.__name__)
        is_attribute = name == "getattr" and node.args[1] in _NO_TENSOR_ATTRIBUTES
        if not inputs or name in _NO_TENSOR or is_attribute:
            return None
        if name in _JOINED:
            return self._join(inputs, f"{node.op} {name}")
        if name in _PASSED_ON and len(inputs) == 1:
            return inputs[0]
        raise self._unknown(f"{name} ({node.format_node()})")

    def _refuse_tensor(self, node: fx.Node) -> None:
        tensor: Any = self._module
        for part in str(node.target).split("."):
            tensor = getattr(tensor, part)
        if isinstance(tensor, Tensor) and tensor.numel() > 1:
            raise self._unknown(f"the tensor {node.target!r} where it is used outside of a layer")

    def _layer(self, layer: nn.Module, name: str, wire: Wire) -> Wire:
        if isinstance(layer, nn.Linear):
            return self._mix(layer.weight, layer.bias, wire, name, out=0)
        if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)):
            out = 1 if isinstance(layer, _TRANSPOSED) else 0
            if layer.groups == 1:
                return self._mix(layer.weight, layer.bias, wire, name, out=out)
            if layer.groups == layer.in_channels == layer.out_channels:
                return self._own(wire, name, layer.weight, layer.bias)
            raise self._unknown(f"{name!r}, a convolution in {layer.groups} groups")
        if isinstance(layer, (*_BATCH_NORMS, *_INSTANCE_NORMS)):
            statistics = (layer.running_mean, layer.running_var)
            return self._own(wire, name, layer.weight, layer.bias, *statistics)
        if isinstance(layer, nn.LayerNorm):
            return self._own(wire, name, layer.weight, layer.bias)
        if isinstance(layer, nn.GroupNorm) and layer.num_groups in (1, layer.num_channels):
            return self._own(wire, name, layer.weight, layer.bias)
        if isinstance(layer, nn.PReLU):
            own = (layer.weight,) if layer.num_parameters > 1 else ()
            return self._own(wire, name, *own)
        if _name(type(layer).__name__) in _PASSED_ON:
            return wire
        raise self._unknown(f"{name!r}, a {type(layer).__name__}")

    def _mix(self, weight: Tensor, bias: Tensor | None, wire: Wire, name: str, *, out: int) -> Wire:
        """End one group of units and begin another."""
        self._attach(weight, 1 - out, wire, name)
        behind = Wire(self._new(), weight.shape[out])
        self._attach(weight, out, behind, name)
        if bias is not None:
            self._attach(bias, 0, behind, name)
        return behind

    def _own(self, wire: Wire, name: str, *tensors: Tensor | None) -> Wire:
        """Add a layer's own tensors, which have an entry for each unit, to their group."""
        for tensor in tensors:
            if tensor is not None:
                self._attach(tensor, 0, wire, name)
        return wire

    def _attach(self, tensor: Tensor, axis: int, wire: Wire, layer: str) -> None:
        name = self._names.get(id(tensor))
        if name is None:
            raise self._unknown(f"{layer!r}, whose tensors are computed from others")
        length = tensor.shape[axis]
        block = 1 if wire.size is None else length // wire.size
        if wire.size is not None and (not block or length % wire.size):
            raise self._unknown(
                f"how {wire.size} units become the {length} entries of axis {axis} of {name!r}"
            )
        if (name, axis) in self._axes:  # a layer that is used twice
            group, known = self._axes[name, axis]
            if known != block:
                raise self._unknown(f"{name!r}, which is used in two ways")
            self._unite(group, wire.group)
        else:
            self._axes[name, axis] = (wire.group, block)

    def _join(self, wires: list[Wire], what: str) -> Wire:
        first = wires[0]
        for other in wires[1:]:
            if other.size != first.size and None not in (other.size, first.size):
                raise self._unknown(f"{what} of {first.size} and {other.size} units")
            self._unite(first.group, other.group)
        return first

    def _fix(self, wire: Wire | None) -> None:
        if wire is not None:
            self._unite(self._fixed, wire.group)

    def _new(self) -> int:
        self._parents.append(len(self._parents))
        return len(self._parents) - 1

    def _root(self, group: int) -> int:
        while self._parents[group] != group:
            group = self._parents[group]
        return group

    def _unite(self, one: int, other: int) -> None:
        self._parents[self._root(other)] = self._root(one)

    def _unknown(self, what: str) -> InputError:
        return InputError(
            f"the hidden units of {type(self._module).__name__} cannot be told: there is no rule "
            f"for {what}. {_REMEDY}"
        )


def _name(name: str) -> str:
    """Return a name without case, underscores and dimensions: ``MaxPool2d`` as ``max_pool2d``."""
    return re.sub(r"[123]d$", "", name.replace("_", "").lower())
