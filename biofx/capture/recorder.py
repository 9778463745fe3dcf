"""Records one run of a model as a flat graph: every operation, whatever Python did on the way.

Tensors carry values, so Python decides as it always does. Two layers see what happens: calls of
torch's API as the user wrote them, and beneath it the operations that no such call accounts for
(inside `torch.vmap`, behind an old-style constructor).
"""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from biofx.capture import targets
from biofx.capture.call import FORWARD_ONLY, Call
from biofx.capture.data_sizes import DataSizes
from biofx.capture.inputs import Arguments
from biofx.capture.leaves import has_hooks, is_leaf
from biofx.capture.memory import tensor_ids
from biofx.capture.private import (
    AutogradCall,
    autograd_functions_seen,
    casts_seen,
    conditions_taken,
    dispatch_seen,
    inside_transform,
    without_functions,
)
from biofx.capture.shared_weights import SharedWeights
from biofx.capture.writer import READ_BY_PYTHON, GraphWriter, current_modes
from biofx.copying.nested import leaves
from biofx.copying.rebind import leads_to_tensors


class Recorder(GraphWriter, TorchFunctionMode):
    """Records calls into `graph` while it is entered, for the thread that made it.

    Args:
        root: the module that runs; a throw-away copy, for its `forward`s are wrapped.
        originals: {id of a tensor of `root`: the model's tensor that it stands for}.
        weights: those that `root` shares with the model.
    """

    def __init__(
        self, root: nn.Module, originals: dict[int, Tensor], weights: SharedWeights
    ) -> None:
        super().__init__(root, originals)
        self.weights = weights
        self.data_sizes = DataSizes(self._depends_on_data)
        self.measured: set[str] = set()  # tensors of the model whose sizes the forward asks for
        self.failed: BaseException | None = None  # for want of values, even if it was caught
        self._meta = any(parameter.is_meta for parameter in root.parameters())
        self._depth = 1  # nothing is recorded outside of the root's forward, nor inside a call
        self._thread = threading.get_ident()

    # --- running -----------------------------------------------------------------------------

    def run(self, arguments: Arguments, signature: inspect.Signature) -> None:
        """Run the root on these arguments and record what its forward does.

        Args:
            arguments: the values that it is called with.
            signature: of its forward, without ``self``.
        """
        self._find_attributes()
        self._wrap_modules(signature)
        with (
            autograd_functions_seen(self._autograd, self._passed_on),
            casts_seen(self._cast),
            conditions_taken(),
            dispatch_seen(self.beneath),
            self,
        ):
            self.root(*arguments.args, **arguments.kwargs)
        self._note_assigned()

    def _root(self, forward: Any, signature: inspect.Signature) -> Callable[..., Any]:
        """The forward of the root, with a graph around it: its hooks stay outside."""
        done = False

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if done:
                return forward(*args, **kwargs)
            done = True
            self.call = Call.of(signature, args, kwargs)
            for name, value in self.call.values.items():
                self._placeholder(*self.call.placeholder(name), value)
            self._depth -= 1
            try:
                self._modes = current_modes()
                result = forward(*args, **kwargs)
                self._follow_modes()
                self._finishing = True
                with without_functions():
                    self.graph.output(self._argument(result))
            finally:
                self._depth += 1
            return result

        return run

    def _placeholder(self, target: str, default: tuple[Any, ...], value: Any) -> None:
        node = self.graph.create_node("placeholder", target, default, name=target.lstrip("*"))
        self._hold(node, value)
        self._describe(node, value)

    # --- the two layers ----------------------------------------------------------------------

    @property
    def _recording(self) -> bool:
        """Whether a call is the forward's own, and not made by another thread or inside another."""
        return not self._depth and threading.get_ident() == self._thread

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.weights.check_call(func, args)
        if not self._recording or inside_transform():
            return func(*args, **kwargs)
        self.data_sizes.numbers.clear()
        with self._inside():
            result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result

    def beneath(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation that no call of torch's API accounts for."""
        self.weights.check_operation(func, args, kwargs)
        result = func(*args, **kwargs)
        self.data_sizes.see(func, args, kwargs, result)
        if self._recording:
            made = [leaf for _, leaf in leaves(result) if isinstance(leaf, Tensor)]
            fresh = not any(id(tensor) in self._known for tensor in made)
            if made and (fresh or func._schema.is_mutable):
                self._emit("call_function", func, args, kwargs, result)
        return result

    def _autograd(self, function: Any, call: Any, args: Any, kwargs: Any) -> Any:
        if not self._recording or kwargs or inside_transform():
            return call(*args, **kwargs)
        if any(map(self._is_of_this_run, args)):
            result = call(*args)
            for _, leaf in leaves(result):
                if id(leaf) in self._known:
                    self._assume_forward(function.__name__, self._known[id(leaf)][0])
            return result
        with without_functions():  # as they are before: it may fill a cache
            given = tuple(map(self._argument, args))
        with self._inside():
            result = call(*args)
        self._emit("call_function", AutogradCall(function), given, {}, result)
        return result

    def _is_of_this_run(self, value: Any) -> bool:
        """Whether an argument has tensors or modules that the graph cannot give it at each run.

        A function keeps those of this run, and so does a module that the forward makes.
        """
        if type(value) in (list, tuple, dict):
            return any(map(self._is_of_this_run, value.values() if type(value) is dict else value))
        if isinstance(value, nn.Module):
            return not self._names.get(id(value))
        return any(not isinstance(i, Tensor) and leads_to_tensors(i) for _, i in leaves(value))

    def _cast(self, call: Any, tensor: Tensor, kind: Any) -> Any:
        if not self._recording or inside_transform():
            return call(tensor, kind)
        with self._inside():
            result = call(tensor, kind)
        self._emit("call_method", "as_subclass", (tensor, kind), {}, result)
        return result

    def _passed_on(self, call: Any, args: tuple[Any, ...]) -> Any:
        """A call that gives its arguments: no operation of the model's."""
        with self._inside():
            result = call(*args)
        if self._recording:
            for given, same in zip(args, result, strict=True):
                with without_functions():
                    self._hold(self._node_of(given), same)
        return result

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        except Exception as error:
            if self._meta:
                self.failed = error
            raise
        finally:
            self._depth -= 1

    def _note(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        call = targets.call_of(func, args, kwargs)
        if call.kind == "hook":
            self._assume("hook", f"{call.written} of a tensor; the graph has no such hook")
        told = targets.sizes_told(func, args, kwargs, result)
        if told:
            self.measured.update(n for n in map(self._attributes.get, map(id, args)) if n)
            if not told.isdisjoint(self.data_sizes.axes(args[0])):
                self._assume("data", f"the size of a tensor gave {_short(result)}")
        if call.kind in ("hook", "silent"):
            return
        holds = any(isinstance(leaf, Tensor) for _, leaf in leaves(result))
        if not holds and call.kind != "changes":
            asked = call.kind == "value" and result is not None
            if asked and self._depends_on_data((args, kwargs)):
                self._assume("data", f"{call.written} gave {_short(result)}")
                for _, leaf in leaves((args, kwargs)):
                    if id(leaf) in self._known:
                        self._known[id(leaf)][0].meta[READ_BY_PYTHON] = True
            return
        if isinstance(result, list | tuple) and len(result) in self.data_sizes.numbers:
            self._assume("data", f"the number of tensors of {call.written} gave {len(result)}")
        self._emit(call.op, call.target, call.args, call.kwargs, result)

    # --- modules -----------------------------------------------------------------------------

    def _wrap_modules(self, signature: inspect.Signature) -> None:
        for name, module in self._by_name.items():
            inner = getattr(module, "_orig_mod", None)  # torch.compile would run graphs of its own
            forward = inner if isinstance(inner, nn.Module) else module.forward
            if not name:
                wrapped = self._root(forward, signature)
            elif is_leaf(module):
                wrapped = self._leaf(module, name, forward)
            else:
                wrapped = self._scope(module, name, forward)
            module.__dict__["forward"] = wrapped

    def _scope(self, module: nn.Module, name: str, forward: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._modules.append((name, module))
            try:
                return forward(*args, **kwargs)
            finally:
                self._modules.pop()

        return run

    def _leaf(self, module: nn.Module, name: str, forward: Any) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if not self._recording or inside_transform():
                return forward(*args, **kwargs)
            self._modules.append((name, module))
            try:
                if not self._holds_its_own(module, name):
                    return forward(*args, **kwargs)
                if module.training is not self._training[name]:
                    mode = "training" if module.training else "evaluation"
                    self._assume("state", f"runs {name} in {mode} mode, as its code sets it")
                with self._inside():
                    result = forward(*args, **kwargs)
                node = self._emit("call_module", name, args, kwargs, result)
                if has_hooks(module):
                    node.meta[FORWARD_ONLY] = True
            finally:
                self._modules.pop()
            return result

        return run

    def _holds_its_own(self, module: nn.Module, name: str) -> bool:
        """Whether a leaf computes with the tensors that its names stand for.

        Not so in `torch.func.functional_call`, or where a hook computes its weight.
        """
        return self._tensors[name] == tensor_ids(module)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
