"""Generative models, dynamics and reinforcement learning."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Normal

from .table import architecture, floats


@architecture("vae", floats((4, 8)), tags={"captured", "rng"})
class VAE(nn.Module):
    """Reparameterisation with `torch.randn_like`, four outputs."""

    def __init__(self):
        super().__init__()
        self.encoder, self.mean, self.log_var = nn.Linear(8, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.decoder = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x):
        h = torch.relu(self.encoder(x))
        mean, log_var = self.mean(h), self.log_var(h)
        z = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
        return self.decoder(z), mean, log_var, z


@architecture("gan_generator", floats((2, 8)), tags={"captured", "conv", "stateful"})
class Generator(nn.Module):
    """DCGAN: a view to 1x1 maps, transposed convolutions, batch norm, tanh."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(8, 8, 4, 1, 0, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.main(z[:, :, None, None])


@architecture("gan_both", floats((2, 8), (2, 6)), tags={"captured"})
class GAN(nn.Module):
    """Generator and discriminator in one module; the discriminator sees real and fake data."""

    def __init__(self):
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 6))
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))

    def forward(self, z, real):
        fake = self.generator(z)
        return {
            "real": self.discriminator(real),
            "fake": self.discriminator(fake.detach()),
            "generator": self.discriminator(fake),
        }


@architecture("autoencoder", floats((2, 1, 8, 8)), tags={"captured", "conv"})
def autoencoder():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6)),
        nn.Sequential(nn.Linear(6, 64), nn.Unflatten(1, (4, 4, 4)), nn.ReLU()),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(4, 1, 3, padding=1), nn.Sigmoid()),
    )


class Coupling(nn.Module):
    """An affine coupling layer that runs forwards or, with `reverse=True`, backwards."""

    def __init__(self, flip):
        super().__init__()
        self.net, self.flip = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8)), flip

    def forward(self, x, reverse=False):
        a, b = x.chunk(2, dim=1)
        if self.flip:
            a, b = b, a
        shift, log_scale = self.net(a).chunk(2, dim=1)
        log_scale = log_scale.tanh()
        b = (b - shift) * (-log_scale).exp() if reverse else b * log_scale.exp() + shift
        return torch.cat([b, a] if self.flip else [a, b], 1), log_scale.sum(1)


@architecture("normalising_flow", floats((4, 8)), tags={"captured", "shared"})
class Flow(nn.Module):
    """Couplings run forwards and, with a flag, backwards; log-determinants summed."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Coupling(flip) for flip in (False, True, False))

    def forward(self, x):
        z, log_det = x, 0.0
        for layer in self.layers:
            z, change = layer(z)
            log_det = log_det + change
        back = z
        for layer in reversed(self.layers):
            back, _ = layer(back, reverse=True)
        return z, log_det, back


@architecture("neural_ode", floats((4, 8)), tags={"captured", "shared"})
class NeuralODE(nn.Module):
    """Runge-Kutta steps: one vector field called twelve times, time as a Python float."""

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(9, 16), nn.Linear(16, 8)

        def forward(self, t, x):
            x = torch.cat([x, torch.full_like(x[:, :1], t)], -1)
            return self.b(torch.tanh(self.a(x)))

    def __init__(self):
        super().__init__()
        self.field = self.Field()

    def forward(self, x, steps=3):
        h = 1.0 / 3
        for i in range(3):
            t = i * h
            k1 = self.field(t, x)
            k2 = self.field(t + h / 2, x + h / 2 * k1)
            k3 = self.field(t + h / 2, x + h / 2 * k2)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + self.field(t + h, x + h * k3))
        return x


@architecture(
    "diffusion_unet",
    lambda: ((torch.randn(2, 3, 8, 8), torch.randint(100, (2,))), {}),
    tags={"captured", "conv"},
)
class Diffusion(nn.Module):
    """Sinusoidal time embedding, FiLM residual blocks, zero-initialised output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(-torch.arange(4.0)), persistent=False)
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.enter, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8, affine=False)
        self.leave = nn.Conv2d(8, 3, 3, padding=1)
        nn.init.zeros_(self.leave.weight)

    def forward(self, x, t):
        angle = t[:, None].float() * self.frequencies[None]
        film = self.time(torch.cat([angle.sin(), angle.cos()], -1))[:, :, None, None]
        scale, shift = film.chunk(2, 1)
        return self.leave(F.silu(self.norm(self.enter(x)) * (1 + scale) + shift))


@architecture("actor_critic_distribution", floats((4, 8)), tags={"rng"})
class ActorCritic(nn.Module):
    """A `torch.distributions` object built from outputs and sampled in `forward`."""

    def __init__(self):
        super().__init__()
        self.body, self.mean, self.value = nn.Linear(8, 8), nn.Linear(8, 2), nn.Linear(8, 1)
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        x = torch.tanh(self.body(x))
        policy = Normal(self.mean(x), self.log_std.exp())
        action = policy.rsample()
        return action, policy.log_prob(action.detach()).sum(-1), self.value(x)


@architecture("spiking_network", floats((2, 5, 8)), tags={"autograd-function", "shapes"})
class Spiking(nn.Module):
    """Leaky integrate-and-fire neurons with a surrogate gradient, looped over time."""

    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, v):
            ctx.save_for_backward(v)
            return (v > 0).to(v.dtype)

        @staticmethod
        def backward(ctx, grad):
            (v,) = ctx.saved_tensors
            return grad / (1 + v.abs()).square()

    def __init__(self):
        super().__init__()
        self.inputs, self.recurrent, self.out = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        v = spikes = torch.zeros_like(x[:, 0])
        total = 0
        for t in range(x.shape[1]):
            v = 0.9 * v * (1 - spikes) + self.inputs(x[:, t]) + self.recurrent(spikes)
            spikes = self.Spike.apply(v - 0.5)
            total = total + self.out(spikes)
        return total


@architecture("gumbel_softmax", floats((4, 8)), tags={"captured", "rng"})
class Gumbel(nn.Module):
    """`F.gumbel_softmax(hard=True)` choosing rows of a codebook."""

    def __init__(self):
        super().__init__()
        self.logits, self.codebook = nn.Linear(8, 5), nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        return F.gumbel_softmax(self.logits(x), tau=0.5, hard=True) @ self.codebook
