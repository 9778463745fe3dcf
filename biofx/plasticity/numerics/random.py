"""Random numbers as a pure function of (seed, step, parameter name, stream, element index, draw).

There is no state. A draw is computed from a 64-bit *key* (who draws, when, for what) and the
*global* index of the element that it is for, so one process, every DDP rank, each FSDP2 shard and a
resumed run all see the same numbers, and PyTorch's own generators are never touched:

    >>> key = key_tensor(stream_key(0, 17, "fc1.weight", "fuzzy"))
    >>> noise = normal(key, counters((128, 64)))

Keys and indices are tensors and everything is elementwise, so ``torch.compile`` fuses a draw into
the kernel that uses it, and a new seed, step or name does not recompile.

The bits are made by three multiply-xorshift steps, with one half of the key before the first and
the other before the last (the form of the iterated Even-Mansour cipher)::

    bits = step3(step2(step1(index ^ key_low)) + key_high)        step(x): x *= M;  x ^= x >>> 16

For a given key this is a bijection of the 32-bit indices: no element repeats another's bits. The
high word of an index above 2**32 enters at both places. Different draws and different functions
(``uniform``, ``normal``, …) XOR a constant of their own into the key.

Few operations matter: compiled rules are bound by arithmetic. Threefry and Philox take several
times as long (int32 tensors have no high half of a product). ``torch.func._random`` (Philox) is
experimental, has CPU and CUDA kernels only, is opaque to the compiler, and numbers elements by
their place in *its* result, so that a shard cannot ask for its own. What speaks for the quality of
this one is the multipliers' record and the battery in the tests; TestU01's SmallCrush passes,
whether it is fed one parameter, one element over many keys, many small parameters, or the draws of
each element. Single bits of a *key* avalanche less well than those of an index: keys are hashes.

Sources: Even, Mansour: A construction of a cipher from a single pseudorandom permutation, J.
Cryptology 10 (1997). Salmon et al.: Parallel random numbers: as easy as 1, 2, 3, SC 2011. Wellons:
hash-prospector (the multipliers of ``triple32``). Not cryptography.
"""

import hashlib
import math
import operator
import sys
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from biofx.plasticity.numerics.polynomials import polynomial

__all__ = [
    "beta",
    "bits",
    "counters",
    "gamma",
    "index_dtype",
    "key_tensor",
    "normal",
    "positive",
    "shard_counters",
    "stream_key",
    "stream_keys",
    "stream_name",
    "symmetric",
    "uniform",
]

# Multipliers, as the signed numbers that int32 holds.
_MIX: Final = (0xED5AD4BB - 2**32, 0xAC4C1B51 - 2**32, 0x31848BAB)
# Odd and without pattern: they spread the (small) high word of an index over a half of the key.
_HIGH: Final = (0x9E3779B9 - 2**32, 0xB5297A4D - 2**32)
# Odd, above 2**32: every word of every function changes both halves of the key in its own way.
_WORD: Final = 0x278DDE6E5FD
# Which function draws: keeps normal(draw=0) from reusing the bits of uniform(draw=0).
_BITS, _NORMAL, _GAMMA, _BETA = range(4)
_GAMMA_ATTEMPTS: Final = 6
# A sum of uniforms to a normal: see `_normal`.
_QUANTILE: Final = (3.00458749, 0.259444883, 0.108793432, 0.078113086, -0.170178763, 0.188384391)


def stream_key(seed: int, step: int, name: str, stream: str = "") -> int:
    """The key of one parameter's draws at one step.

    Args:
        seed: the run's seed; any integer.
        step: the training step; any integer.
        name: the parameter's qualified name.
        stream: what the draw is for, so that two rules on one parameter are independent.

    Returns:
        A signed 64-bit integer, the same in every process, on every machine and Python version.

    Raises:
        TypeError: ``seed`` or ``step`` is not an integer.
    """
    hashed = _hash(seed, step)
    hashed.update(stream_name(name, stream))
    return int.from_bytes(hashed.digest(), "little", signed=True)


def stream_name(name: str, stream: str = "") -> bytes:
    """What `stream_keys` takes for one parameter and purpose."""
    # The length keeps ("a", "b|c") and ("a|b", "c") apart. A name may hold half a character: what
    # Python makes of bytes that are no UTF-8.
    return f"{len(name)}|{name}|{stream}".encode(errors="surrogatepass")


def stream_keys(
    seed: int, step: int, names: Sequence[bytes], device: torch.device | str | None = None
) -> Tensor:
    """`stream_key` of many parameters at one step, for less, as a tensor.

    Args:
        seed, step: as for `stream_key`.
        names: n of `stream_name`.
        device: where the tensor goes.

    Returns:
        int64, of shape (n,).
    """
    start = _hash(seed, step)
    digests = bytearray()
    for name in names:
        hashed = start.copy()
        hashed.update(name)
        digests += hashed.digest()
    if sys.byteorder == "big":
        digests[:] = b"".join(digests[i : i + 8][::-1] for i in range(0, len(digests), 8))
    return torch.frombuffer(digests, dtype=torch.int64).to(device)


def _hash(seed: int, step: int) -> "hashlib.blake2b":
    text = f"{operator.index(seed)}|{operator.index(step)}|"
    return hashlib.blake2b(text.encode(), digest_size=8, person=b"biofx.random")


def key_tensor(key: int | Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """Keys as a tensor: what the functions below take. A new value does not recompile.

    Args:
        key: one key of :func:`stream_key`, or one for each of n parameters.
        device: where the tensor goes.

    Returns:
        int64, of shape () or (n,). Keys broadcast against indices: ``keys[i]`` is one parameter's,
        ``keys[:, None]`` draws for n equally large parameters at once.
    """
    # Of one number in half the time: each step needs one for each draw of each parameter.
    if isinstance(key, int):
        return torch.scalar_tensor(key, dtype=torch.int64, device=device)
    return torch.tensor(key, dtype=torch.int64, device=device)


def counters(shape: int | Sequence[int], device: torch.device | str | None = None) -> Tensor:
    """The indices of all elements of a whole (unsharded) tensor, row by row.

    Args:
        shape: the tensor's shape, or its number of elements.
        device: where the indices go.

    Returns:
        Of the given shape; int32, or int64 from 2**31 elements on. Both types give the same draws.
    """
    shape = (shape,) if isinstance(shape, int | torch.SymInt) else tuple(shape)
    numel = math.prod(shape)
    return torch.arange(numel, dtype=index_dtype(numel), device=device).view(shape)


def shard_counters(
    global_shape: Sequence[int],
    local_shape: Sequence[int],
    *,
    offsets: Sequence[int],
    device: torch.device | str | None = None,
) -> Tensor:
    """The global indices of one shard's elements: a slice of ``counters(global_shape)``.

    Args:
        global_shape: the shape of the whole tensor, at most 2**62 elements.
        local_shape: the shape of the shard; dimensions may be 0.
        offsets: where the shard begins, per dimension.
        device: where the indices go.

    Returns:
        Of shape ``local_shape``; int32, or int64 if the *whole* tensor has 2**31 elements or more.

    Raises:
        ValueError: the shapes and offsets differ in length.
    """
    if not len(global_shape) == len(local_shape) == len(offsets):
        raise ValueError(
            f"shard of shape {tuple(local_shape)} at {tuple(offsets)} of a tensor of shape "
            f"{tuple(global_shape)}: give one size and one offset per dimension"
        )
    dtype = index_dtype(math.prod(global_shape))
    index = torch.zeros((), dtype=dtype, device=device)
    stride = 1
    for whole, size, offset in reversed(list(zip(global_shape, local_shape, offsets, strict=True))):
        line = torch.arange(offset, offset + size, dtype=dtype, device=device) * stride
        index = line.view(-1, *[1] * index.dim()) + index
        stride *= whole
    return index


def bits(key: Tensor, index: Tensor, *, draw: int = 0) -> Tensor:
    """32 random bits per element.

    Args:
        key: int64, of :func:`key_tensor`; broadcasts against ``index``.
        index: global element indices, int32 or int64, from 0 to 2**62.
        draw: numbers the independent draws for one element, from 0 to 2**14.

    Returns:
        int32, each of its 2**32 values equally likely; the same on every device, eager or compiled.

    Raises:
        TypeError: ``key`` or ``index`` has another type.
    """
    return _word(key, index, _BITS, draw)


def uniform(key: Tensor, index: Tensor, *, draw: int = 0) -> Tensor:
    """Uniform on [0, 1), in steps of 2**-24. Arguments as :func:`bits`.

    float32 whatever the weight's type; the same number on every device, eager or compiled.
    """
    return _signed(_word(key, index, _BITS, draw)).mul_(0.5).add_(0.5)


def symmetric(key: Tensor, index: Tensor, *, draw: int = 0, scale: Tensor | None = None) -> Tensor:
    """Uniform on [-1, 1): exactly ``2 * uniform(key, index, draw=draw) - 1``, for less.

    With a `scale` of shape (), or that broadcasts to the index, exactly ``scale`` times that.
    """
    return _signed(_word(key, index, _BITS, draw), scale)


def positive(key: Tensor, index: Tensor, *, draw: int = 0) -> Tensor:
    """Uniform on (0, 1], down to 2**-32, for what has very small probabilities: p if it is ≤ p.

    Arguments as :func:`bits`. float32; the same number on every device, eager or compiled. The bits
    are those of ``uniform`` with the same `draw`.
    """
    return _positive_unit(_word(key, index, _BITS, draw))


def normal(key: Tensor, index: Tensor, *, draw: int = 0) -> Tensor:
    """Standard normal, nearly. Arguments as :func:`bits`.

    float32 whatever the weight's type. The distribution function is within 5e-5 of the normal's
    (telling them apart takes some 10**9 draws), the probability of |z| above any limit up to 4.5
    within 5 %, and no |z| is above 5.9. Eager and compiled code, and different devices, may round
    differently (products fused with sums): equal to a few units in the last place, not to the bit.

    It takes one word, and no logarithm, sine or square root: half the time of Box and Muller's.
    """
    return _normal(_word(key, index, _NORMAL, draw))


def gamma(key: Tensor, index: Tensor, shape: float | Tensor, *, draw: int = 0) -> Tensor:
    """Gamma(shape, scale 1), so mean ``shape`` and variance ``shape``.

    Marsaglia and Tsang (2000): A simple method for generating gamma variables, with their boost
    G(a) = G(a + 1)·U^(1/a) for a < 1. No loop depends on data: 6 attempts are made and the last
    accepted one counts. An attempt fails with probability 0.048 at shape 1, less above, so all fail
    for 1.3e-8 of the elements at most; those get ``shape - 1/3`` (the median, nearly). Where code
    paths round differently (see :func:`normal`), 1 element in 10**6 may take another attempt.
    Draw eagerly what is drawn once: 13 words and their tests are a long program to compile.

    Args:
        key, index, draw: as :func:`bits`.
        shape: above 0; a number, or a tensor that broadcasts against ``index``.

    Returns:
        float32, whatever the weight's type.

    Raises:
        ValueError: a number ``shape`` is not positive and finite (a tensor is not checked).
    """
    _check_positive("gamma's shape", shape)
    words = 2 * _GAMMA_ATTEMPTS + 1
    a = _float32(shape, index)
    d = torch.where(a < 1, a + 1, a) - 1 / 3
    c = (9 * d) ** -0.5
    v = torch.ones((), dtype=torch.float32, device=index.device)
    for attempt in range(_GAMMA_ATTEMPTS):
        first = draw * words + 2 * attempt
        z = _normal(_word(key, index, _GAMMA, first))
        log_u = _positive_unit(_word(key, index, _GAMMA, first + 1)).log()
        t = c * z
        root = 1 + t  # the paper's v is its cube
        # log(1 + t) with its rounding repaired (the compiler does not vectorise log1p), and v - 1
        # written out: d·(1 - v + log v) would cancel to noise at large d. Where 1 + t <= 0 this is
        # NaN or -inf and the comparison false: rejected, as it must be.
        log_v = 3 * (root.log() + (t - (root - 1)) / root)
        accepted = log_u < 0.5 * z * z + d * (log_v - t * (3 + t * (3 + t)))
        v = torch.where(accepted, root * root * root, v)
    log_u = _positive_unit(_word(key, index, _GAMMA, draw * words + words - 1)).log()
    return d * v * torch.where(a < 1, (log_u / a).exp(), 1.0)


def beta(key: Tensor, index: Tensor, a: float | Tensor, *, draw: int = 0) -> Tensor:
    """The symmetric Beta(a, a) on [0, 1]: mean 1/2, variance 1/(8a + 4).

    No rejection, any a > 0. If T is Student's t with 2a degrees of freedom, 1/2 + T/(2·√(2a + T²))
    is Beta(a, a), and T² = 2a·(U^(-1/a) - 1)·cos²(2πV): Bailey (1994), Polar generation of random
    variates with the t-distribution; Devroye (1996), Random variate generation in one line of code.

    Args:
        key, index, draw: as :func:`bits`.
        a: above 0; a number, or a tensor that broadcasts against ``index``.

    Returns:
        float32, whatever the weight's type. Rounding as for :func:`normal`.

    Raises:
        ValueError: a number ``a`` is not positive and finite (a tensor is not checked).
    """
    _check_positive("beta's a", a)
    log_u = _positive_unit(_word(key, index, _BETA, 2 * draw)).log()
    power = log_u / _float32(a, index)
    cosine = (_signed(_word(key, index, _BETA, 2 * draw + 1)) * math.pi).cos()
    # With s = U^(1/a): T²/(2a + T²) = (1-s)cos²/(s + (1-s)cos²), in which nothing can overflow.
    # 1 - s = -expm1(power), which the compiler does not vectorise, but tanh it does.
    s = power.exp()
    rest = -(1 + s) * torch.tanh(0.5 * power)
    half = 0.5 * cosine * (rest / (s + rest * cosine * cosine)).sqrt()
    return (0.5 + half).clamp(0, 1)  # rounding may step over the edge


def index_dtype(numel: int) -> torch.dtype:
    """The type of the indices of a tensor with so many elements."""
    return torch.int32 if numel < 2**31 else torch.int64


def _check_positive(what: str, value: float | Tensor) -> None:
    if not isinstance(value, Tensor) and not 0 < value < math.inf:
        raise ValueError(f"{what} must be positive and finite, got {value}")


def _float32(value: float | Tensor, like: Tensor) -> Tensor:
    """So that a number and a tensor round in the same way."""
    if isinstance(value, Tensor):
        return value.to(torch.float32)
    return torch.full((), value, dtype=torch.float32, device=like.device)


def _word(key: Tensor, index: Tensor, function: int, word: int) -> Tensor:
    """32 bits per element, in a fresh int32 tensor that the caller may overwrite."""
    if key.dtype != torch.int64 or index.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"need an int64 key and an int32 or int64 index, got {key.dtype} and {index.dtype}: "
            "make them with key_tensor() and counters()"
        )
    # A product that fits 64 bits, not a hash: ``draw`` may be symbolic where sizes are.
    key = key ^ (4 * word + function) * _WORD
    before, between = key.to(torch.int32), (key >> 32).to(torch.int32)
    # In place from here on: eager mode is bound by memory traffic, and compiled code does not care.
    if index.dtype == torch.int64:
        high = (index >> 32).to(torch.int32)
        x = (index.to(torch.int32) ^ before).add_(high * _HIGH[0])
        between = between + high * _HIGH[1]
    else:
        x = index ^ before
    x = _xorshift_(x.mul_(_MIX[0]))
    # Without this step, the words of two streams coincide (at any places) too often or too rarely.
    x = _xorshift_(x.mul_(_MIX[1]))
    # (x + between)·M in one operation, which wraps around as the two do.
    return _xorshift_(torch.add(between * _MIX[2], x, alpha=_MIX[2]))


def _xorshift_(x: Tensor) -> Tensor:
    # int32's >> copies the sign: mask the copies off. (Unsigned types have too few operators.)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _signed(word: Tensor, scale: Tensor | None = None) -> Tensor:
    """[-1, 1) in steps of 2**-23: each step is a float32, so nothing rounds up to 1.

    It overwrites the word. A scale, by a power of 2 less, takes no product of its own.
    """
    unit = 2.0**-23 if scale is None else scale * 2.0**-23
    return word.bitwise_right_shift_(8).to(torch.float32).mul_(unit)


def _positive_unit(word: Tensor) -> Tensor:
    """(0, 1], so that the logarithm is finite; down to 2**-32, where the tails come from."""
    return (word & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-31)


def _normal(word: Tensor) -> Tensor:
    """Standard normal, nearly, from 32 bits.

    The sum of five uniforms is bent to a normal by an odd polynomial, the quantile function fitted
    for small errors of the distribution function and small relative ones of its tails (Teichroew's
    method: Muller, A comparison of methods for generating normal deviates, J. ACM 6, 1959). Four of
    the uniforms are the bytes of the word; the fifth, continuous, is a multiplicative hash of it.
    It overwrites the word.
    """
    pairs = (word >> 8).bitwise_and_(0x00FF00FF).add_(word & 0x00FF00FF)
    fifth = word.mul_(_MIX[1]).bitwise_right_shift_(8)
    # The product's high half is the sum of both pairs, in units of 2**16; less its mean.
    total = fifth.add_(pairs, alpha=0x00010001).sub_(510 * 2**16 + 255)
    t = total.to(torch.float32).mul_(2.0**-25)
    return polynomial(_QUANTILE, t * t).mul_(t)
