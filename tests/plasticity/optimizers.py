"""Optimizers as users write them, or as libraries have them: small, and each of its kind."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Own(Optimizer):
    """Moves each parameter that has a gradient by `move`."""

    def __init__(self, params: Any, lr: float = 1e-2, **options: Any) -> None:
        super().__init__(params, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        raise NotImplementedError


class ScheduleFree(Own):
    """Defazio et al. 2024 over plain SGD, with weights that warm up."""

    def __init__(self, params: Any, lr: float = 1e-2, momentum: float = 0.9) -> None:
        super().__init__(params, lr, momentum=momentum, weight_sum=0.0, train_mode=False)

    def train(self) -> None:
        self.turn(True, lambda beta: 1 - beta)

    def eval(self) -> None:
        self.turn(False, lambda beta: 1 - 1 / beta)

    @torch.no_grad()
    def turn(self, train: bool, share: Callable[[float], float]) -> None:
        for group in self.param_groups:
            if group["train_mode"] != train:
                for parameter in group["params"]:
                    if parameter in self.state:
                        z = self.state[parameter]["z"]
                        parameter.lerp_(z, share(group["momentum"]))
            group["train_mode"] = train

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            assert group["train_mode"]
            count = group["count"] = group.get("count", 0) + 1
            group["weight_sum"] += min(count / 5, 1.0)
            group["share"] = min(count / 5, 1.0) / group["weight_sum"]
        return super().step(closure)

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        z = state.setdefault("z", w.clone())
        beta, share = group["momentum"], group["share"]
        w.lerp_(z, share).add_(g, alpha=group["lr"] * (beta * (1 - share) - 1))
        z.sub_(g, alpha=group["lr"])


class Slow(Own):
    """SGD with slow weights of its own, as Ranger has them."""

    def __init__(self, params: Any, lr: float = 1e-2, period: int = 5) -> None:
        super().__init__(params, lr, period=period)

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        slow = state.setdefault("slow_buffer", w.clone())
        state["count"] = state.get("count", 0) + 1
        w.sub_(g, alpha=group["lr"])
        if state["count"] % group["period"] == 0:
            slow.lerp_(w, 0.5)
            w.copy_(slow)


class Dual(Own):
    """Dual averaging from where the weights began, as MADGRAD does it."""

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        start = state.setdefault("x0", w.clone())
        total = state.setdefault("s", torch.zeros_like(w)).add_(g)
        w.lerp_(start - group["lr"] * total, 0.1)


class Leader(Own):
    """Follows the regularised leader: the weights are a function of the state alone."""

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        z = state.setdefault("z", -w / group["lr"])
        w.copy_(z.add_(g) * -group["lr"])


class Master(Own):
    """SGD on float32 copies of the weights."""

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        if "master" not in state:
            state["master"] = w.float().clone()
        w.copy_(state["master"].sub_(g.float(), alpha=group["lr"]))


class Measuring(Own):
    """Keeps where the weights began, but only to look at it, as Prodigy does."""

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        state.setdefault("p0", w.flatten().clone())
        state["seen"] = state.get("seen", torch.zeros(w.numel())) + g.flatten()
        w.sub_(g, alpha=group["lr"])


class Starting(Own):
    """State that starts with other values than 0: at once, or at the first step."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sum"] = torch.full_like(parameter, 0.25)

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        if "rate" not in state:
            state["rate"] = torch.full_like(w, 3.0)
            state["moment"] = torch.zeros_like(w)
        state["rate"].mul_(1.5)
        state["moment"].lerp_(g, 0.1)
        w.addcdiv_(g, state["sum"].add_(g.square()).sqrt(), value=-group["lr"])


class Rotating(Own):
    """Divides by second moments of gradients in another basis, as SOAP and Conda do."""

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        if "basis" not in state:
            generator = torch.Generator().manual_seed(0)
            normal = torch.randn(w.shape[0], w.shape[0], generator=generator)
            state["basis"] = torch.linalg.qr(normal)[0]
            state["exp_avg"] = torch.zeros_like(w)
            state["rotated"] = torch.zeros_like(w)
        basis = state["basis"]
        mean = state["exp_avg"].lerp_(g, 0.1)
        size = state["rotated"].lerp_((basis @ g).square(), 0.1).sqrt()
        w.sub_(basis.T @ (basis @ mean / (size + 1e-8)), alpha=group["lr"])


class Remembering(Own):
    """Keeps a queue of gradients, and momenta by their rates."""

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        queue = state.setdefault("queue", deque(maxlen=5))
        queue.append(g.clone())
        momenta = state.setdefault("momenta", {0.0: torch.zeros_like(w), 0.9: torch.zeros_like(w)})
        for beta, value in momenta.items():
            value.mul_(beta).add_(g)
        w.sub_(sum(queue) + sum(momenta.values()), alpha=group["lr"])


class Needing(Own):
    """Cannot be made without something that only its user knows."""

    def __init__(self, params: Any, secret: Any, lr: float = 1e-2) -> None:
        self.secret = secret
        super().__init__(params, lr)

    def move(self, w: Tensor, g: Tensor, state: Any, group: Any) -> None:
        self.secret(w, g, state, group)


class Wrapper(Optimizer):
    """Lookahead around another optimizer: slow weights, in a state of its own."""

    def __init__(self, optimizer: Optimizer, period: int = 5, share: float = 0.5) -> None:
        self.optimizer, self.period, self.share, self.count = optimizer, period, share, 0
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.param_groups = optimizer.param_groups
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["slow"] = parameter.detach().clone()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.period == 0:
            for group in self.param_groups:
                for parameter in group["params"]:
                    slow = self.state[parameter]["slow"].lerp_(parameter, self.share)
                    parameter.copy_(slow)
        return loss


class Sharpness(Optimizer):
    """SAM as it is found in most repositories."""

    def __init__(
        self, params: Any, base: type[Optimizer], rho: float = 0.05, **options: Any
    ) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)  # type: ignore[call-arg]
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter]["old_p"] = parameter.data.clone()
                    parameter.add_(parameter.grad, alpha=self.defaults["rho"])
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data = self.state[parameter]["old_p"]
        self.base_optimizer.step()
        self.zero_grad()
