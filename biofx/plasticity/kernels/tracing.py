"""How functions become kernels: traced, compiled, and called without a detour.

Kernels for matrices are traced and compiled without guards, since nothing but their size varies;
those for other tensors go through `torch.compile` and its guards.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from biofx.plasticity.kernels.arena import LENGTH
from biofx.plasticity.kernels.base import KernelSpec, Tensors
from biofx.plasticity.kernels.layout import alone, line
from biofx.plasticity.numerics.polynomials import exp, expm1

# Rows of what kernels are traced with: certainly not as many as there are of anything else.
ROWS = 3 * 5 * 7 * 11

# Takes a list, which it may empty.
Kernel = Callable[[list[Tensor]], Any]


def matrix_kernel(
    spec: KernelSpec, kinds: tuple[tuple[torch.dtype, bool], ...], arguments: tuple[Tensor, ...]
) -> Kernel:
    """The kernel of a spec for matrices."""
    target = spec.names.index(spec.writes[0])

    def run(first: Tensor, columns: Tensor, *parts: Tensor) -> tuple[Tensor]:
        leaves = [
            part != 0 if full and dtype == torch.bool else part
            for part, (dtype, full) in zip(parts, kinds, strict=True)
        ]
        rows, length = parts[target].shape
        lines = torch.arange(rows, dtype=first.dtype, device=first.device) * length + first
        # A table of the columns, for the compiler would build each vector of counts by elements.
        index = lines[:, None] + columns.to(first.dtype)
        values = spec.function(index, *spec.named(leaves))
        _write(spec, values, parts)
        return (first,)  # a graph must have an output

    # Traced with a size that is certainly no square: whatever is equal then must always be.
    size = (ROWS, 1024)
    columns = line(size[1], arguments[1].device)
    # And with gaps between rows, though there are none, or else the compiler would make one line of
    # those loops that use no index, and could not join them with the others.
    parts = [
        part.new_empty(size[0], size[1] + 7)[:, : size[1]] if part.dim() else part
        for part in arguments[2:]
    ]
    return trace(run, (arguments[0], columns, *parts), rounded=spec.rounded)


def _write(spec: KernelSpec, values: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    for name, value in zip(spec.writes, values, strict=True):
        # What the compiler makes of a mask that is stored as such takes twice the whole kernel.
        number = torch.where(value, 1.0, 0.0) if value.dtype == torch.bool else value
        parts[spec.names.index(name)].copy_(number)


def rows_kernel(
    spec: KernelSpec, kinds: tuple[tuple[torch.dtype, int], ...], arguments: tuple[Tensor, ...]
) -> Kernel:
    """The kernel of a spec for the rows of an arena.

    Args:
        spec: what to evaluate.
        kinds: types of its arguments, and whether they are scalars (0), hold one value per row (1)
            or per element (2).
        arguments: index of the first element of each row, numbers of the columns, and the spec's.
    """

    def run(first: Tensor, columns: Tensor, *parts: Tensor) -> tuple[Tensor]:
        leaves = [
            part != 0 if extent == 2 and dtype == torch.bool else part
            for part, (dtype, extent) in zip(parts, kinds, strict=True)
        ]
        index = first + columns.to(first.dtype)
        values = spec.function(index, *spec.named(leaves))
        _write(spec, values, parts)
        return (first,)

    first, _, *parts = arguments
    extents = [extent for _, extent in kinds]
    examples = (_rows(first, 1), line(LENGTH, first.device), *map(_rows, parts, extents))
    return trace(run, examples, rounded=spec.rounded, fixed=LENGTH)


def sums_kernel(
    function: Callable[[Tensor, Tensors], Tensor],
    names: tuple[str, ...],
    kinds: tuple[tuple[torch.dtype, int], ...],
    arguments: tuple[Tensor, ...],
) -> Kernel:
    """The kernel of the sums of a function over each row of an arena.

    Args:
        function: of the weights, and of inputs by their names.
        names: of the inputs.
        kinds: as for `rows_kernel`, of the weights and the inputs.
        arguments: the sums, of shape (rows, 1), float64; index of the first element of each row,
            numbers of the columns, where padding begins; the weights and the inputs.
    """

    def run(
        sums: Tensor, first: Tensor, columns: Tensor, end: Tensor, weight: Tensor, *inputs: Tensor
    ) -> tuple[Tensor]:
        values = function(weight, dict(zip(names, inputs, strict=True)))
        values = torch.where(first + columns.to(first.dtype) < end, values, 0.0)
        sums.copy_(values.sum(1, keepdim=True, dtype=sums.dtype))
        return (first,)

    sums, first, _, end, *parts = arguments
    extents = [extent for _, extent in kinds]
    columns = line(LENGTH, first.device)
    examples = (_rows(sums, 1), _rows(first, 1), columns, _rows(end, 1))
    return trace(run, (*examples, *map(_rows, parts, extents)), fixed=LENGTH)


def _rows(part: Tensor, extent: int) -> Tensor:
    """An example for tracing: as for matrices, many rows, and gaps between them."""
    shapes = {1: (ROWS, 1), 2: (ROWS, LENGTH + 7)}
    return part.new_empty(shapes[extent])[:, :LENGTH] if extent else part


def block_kernel(spec: KernelSpec, arguments: tuple[Tensor, ...]) -> Kernel:
    """As `matrix_kernel`, of several dimensions, whose strides the compiler must watch."""
    from torch.fx.experimental import _config as shapes

    def run(first: Tensor, steps: Tensor, *leaves: Tensor) -> None:
        tensors, inputs = spec.named(leaves)
        like = tensors[spec.writes[0]]
        index = first
        for axis, length in enumerate(like.shape):
            places = torch.arange(length, dtype=first.dtype, device=like.device) * steps[axis]
            index = index + places.view([-1] + [1] * (like.dim() - 1 - axis))
        for name, value in zip(spec.writes, spec.function(index, tensors, inputs), strict=True):
            tensors[name].copy_(value)

    # The compiler counts recompilations by code object: each kernel gets one of its own.
    run.__code__ = run.__code__.replace(co_name=spec.function.__name__)
    options: Any = _settings(arguments[0].device, spec.rounded)
    compiled: Any = torch.compile(run, dynamic=True, fullgraph=True, options=options)

    # Sizes that happen to be equal now must not have to be so the next time. Made once: each patch
    # that is made stays in memory.
    apart = shapes.patch(use_duck_shape=False)  # type: ignore[attr-defined]

    def kernel(arguments: list[Tensor]) -> None:
        with apart:
            compiled(*arguments)

    return kernel


def trace(
    body: Callable[..., Any],
    arguments: tuple[Tensor, ...],
    *,
    rounded: bool = False,
    fixed: int | None = None,
) -> Kernel:
    """Compile for tensors of any size, of which those dimensions agree that do here.

    Args:
        body: writes into some of its arguments.
        arguments: examples.
        rounded: as `KernelSpec.rounded`.
        fixed: a size that is the same at each call: there is less to find out about it.
    """
    # Imported where needed: they take longer than all of biofx.
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.virtualized import V

    patches = {
        # Sizes need no check at each call: they have been looked at. From 2.14 on, the names of
        # sizes are bound for these checks alone.
        "size_asserts": torch.__version__ >= "2.14",
        # Threads are counted at each call: with more of them than there were, a sum that was
        # compiled for their number would write past its end.
        "cpp.dynamic_threads": True,
        # Values that are used more than once and took more operations than this are worked out
        # once. With the compiler's own number, of 50, it repeats them while it writes the code, and
        # takes three times as long; with less, loops come apart.
        "realize_opcount_threshold": 20,
        # It looks for attention and the like.
        "pattern_matcher": False,
    }

    def compiled() -> Kernel:
        # Compiling takes the graph for its own.
        graph, inputs = _graph(body, arguments, fixed)
        mode = inputs[0].fake_mode
        settings = {**patches, **_settings(arguments[0].device, rounded)}
        with config.patch(settings), V.set_fake_mode(mode), tracing(TracingContext(mode)):
            # Past the layers that serve autograd and make a graph functional, which this one is:
            # they take half of the time, and two thirds of each call.
            output: Any = compile_fx_inner(graph, inputs, is_inference=True)
        kernel: Kernel = output.current_callable
        return kernel

    return _untried(compiled)


def _graph(
    body: Callable[..., Any], arguments: Sequence[Tensor], fixed: int | None
) -> tuple[torch.fx.GraphModule, list[Any]]:
    """A graph of basic operations that change nothing until they copy to arguments, and these."""
    from torch._dynamo.source import ConstantSource
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        ShapeEnv,
        StatelessSymbolicContext,
    )

    mode = FakeTensorMode(shape_env=ShapeEnv())

    def example(place: int, part: Tensor) -> Tensor:
        free, known, worked_out = DimDynamic.DUCK, DimDynamic.STATIC, DimDynamic.INFER_STRIDE
        shape: Any = StatelessSymbolicContext(
            dynamic_sizes=[known if size in (1, fixed) else free for size in part.shape],
            dynamic_strides=[worked_out if step == 1 else free for step in part.stride()],
        )
        source = ConstantSource(f"argument{place}")
        return mode.from_tensor(alone(part), source=source, symbolic_context=shape)

    inputs = [example(place, part) for place, part in enumerate(arguments)]
    # The processor's own exp would be a call per vector, around which all registers are saved.
    table = {**select_decomp_table(), **(_TABLE if arguments[0].device.type == "cpu" else {})}
    functional = torch.func.functionalize(body, remove="mutations")
    if fixed is not None:
        # With rows of a known length, the only other size is their number, of which functions of
        # single elements know nothing: what they trace with two numbers is the same, and serves
        # all. Numbers take a quarter of the time that the compiler's symbols for them do.
        graph, other = [_numbered(functional, table, arguments, n) for n in (ROWS, 2 * ROWS)]
        if graph.code == other.code and not graph.graph.find_nodes(op="get_attr"):
            places = graph.graph.find_nodes(op="placeholder")
            for place, part in zip(places, inputs, strict=True):
                place.meta["val"] = part
            return graph, inputs
    graph = make_fx(functional, decomposition_table=table, tracing_mode="symbolic")(*inputs)
    graph.shape_env = None  # it is that of the inputs; a graph that holds it is not kept on disk
    return graph, inputs


def _numbered(
    body: Callable[..., Any], table: Any, arguments: Sequence[Tensor], rows: int
) -> torch.fx.GraphModule:
    """The graph of a body for as many rows."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode()
    parts: list[Tensor] = [mode.from_tensor(alone(part)) for part in arguments]
    for place, part in enumerate(parts):
        if part.shape[:1] == (ROWS,):
            parts[place] = part.new_empty_strided((rows, *part.shape[1:]), part.stride())
    return make_fx(body, decomposition_table=table, tracing_mode="fake")(*parts)


def _untried(compiled: Callable[[], Kernel]) -> Kernel:
    """A kernel that is compiled without a trial of the processor's instructions.

    PyTorch compiles and loads a trial program for each set of vector instructions that the
    processor has, in a process of its own: seconds before the first kernel. That the compiler knows
    the set shows just as well when that kernel is compiled; if it does not, the trial follows.
    """
    from unittest import mock

    from torch._inductor import cpu_vec_isa

    sets = getattr(cpu_vec_isa, "supported_vec_isa_list", [])  # private, as all that follows
    if not all(hasattr(one, "check_build") for one in sets):
        return compiled()
    before = [dict(vars(one)) for one in sets]
    with mock.patch.object(cpu_vec_isa.VecISA, "check_build", return_value=True):
        try:
            return compiled()
        except Exception:
            pass
    remembering: list[Any] = [cpu_vec_isa.valid_vec_isa_list]
    for one, known in zip(sets, before, strict=True):
        vars(one).clear()
        vars(one).update(known)
        members = [member for kind in type(one).__mro__ for member in vars(kind).values()]
        remembering += [member for member in members if hasattr(member, "cache_clear")]
    for function in remembering:
        function.cache_clear()
    return compiled()


def _settings(device: torch.device, rounded: bool) -> dict[str, Any]:
    """The compiler's settings for all kernels.

    Args:
        device: of the tensors.
        rounded: as `KernelSpec.rounded`: whether products may be fused with sums.
    """
    found: dict[str, Any] = {
        "cpp.enable_floating_point_contract_flag": "fast" if rounded else "off"
    }
    if device.type == "cpu":
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        # The length of vectors that the compiler would take anyway. What it keeps on disk is found
        # by its settings, not by the processor, which may be another the next time: code for longer
        # vectors than it has computes a half of the numbers.
        found["cpp.simdlen"] = pick_vec_isa().bit_width()
        # Headers compiled ahead save 2 s for a kernel and cost 6 s, and 150 MB, the first time; and
        # a later process takes a quarter of its time to find that they are still as they were.
        found["cpp_cache_precompile_headers"] = False
    return found


def _exp(x: Tensor) -> Tensor:
    return exp(x) if x.dtype == torch.float32 else NotImplemented


def _expm1(x: Tensor) -> Tensor:
    return expm1(x) if x.dtype == torch.float32 else NotImplemented


_TABLE = {torch.ops.aten.exp.default: _exp, torch.ops.aten.expm1.default: _expm1}
