"""The rules once more, in NumPy and float64, written from the formulas alone."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def fuzzy(distribution: str, draw: Array, nu: Array | float, low: float, high: float) -> Array:
    if distribution in ("uniform", "layer_adaptive", "weight_adaptive", "temporal", "activity"):
        f = (1 - nu) + (2 * nu) * (draw + 1) / 2  # U(1 − ν, 1 + ν)
    elif distribution == "normal":
        f = draw * nu + 1.0
    elif distribution == "lognormal":
        f = np.exp(-(nu**2) / 2 + nu * draw)
    elif distribution == "gamma":
        f = draw * nu**2  # scale ν²
    elif distribution == "beta":
        f = 1 + nu * (2 * draw - 1)
    else:
        raise ValueError(distribution)
    return np.minimum(np.maximum(f, low), high)


def volume(w: Array, z: Array, base: float, stability: float, variability: float) -> Array:
    out = np.empty_like(w)
    for place in np.ndindex(w.shape):
        v = abs(w[place]) / (1 + abs(w[place]))
        mu = base * math.exp(-stability * v)
        out[place] = abs(mu + variability * mu * z[place])
    return out


def crystallize(f: Array, w: Array, g: Array, thresh: float, damp: float, floor: float) -> Array:
    mean = np.mean(np.abs(w))
    out = f.copy()
    for place in np.ndindex(w.shape):
        if abs(g[place]) < thresh * abs(w[place]) or abs(g[place]) > mean:
            out[place] = max(f[place] * damp, floor)
    return out


def removal(w: Array, d: float) -> Array:
    sigma = np.max(np.abs(w)) / d
    return np.array([math.erfc(abs(x) / (sigma * math.sqrt(2))) for x in w.ravel()]).reshape(
        w.shape
    )


def log_moments(w: Array) -> tuple[float, float]:
    logs = np.log(np.abs(w[w != 0]))
    return float(logs.mean()), float(logs.std())


def dale(w: Array, signs: Array) -> Array:
    return np.maximum(w * signs, 0) * signs


def weight_adaptive_nu(w: Array, nu: float) -> Array:
    return nu * np.clip(2 - np.abs(w) / np.abs(w).mean(), 0.5, 1.5)


def activity_nu(c: Array, nu: float) -> Array:
    return nu * (2 - np.clip(1 + 0.1 * (c / c.mean() - 1), 0.8, 1.2))


def temporal(f: Array, decay: float, noise: Array | float, low: float, high: float) -> Array:
    return np.clip(1 + (f - 1) * decay + noise, low, high)
