"""Images that a trial learns from: scikit-learn's digits, or MNIST's own files."""

import functools
import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Images(NamedTuple):
    """Float32 images of shape (n, pixels), from 0 to 1, int64 labels, and the side of an image."""

    x: Tensor
    y: Tensor
    side: int


@functools.cache
def load(source: str = "digits") -> Images:
    """The images of a source: "digits", or "mnist=DIR" with idx files, gzipped or not.

    Raises:
        SystemExit: there are none.
    """
    if source == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return Images(torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y), 8)
    name, _, folder = source.partition("=")
    if name != "mnist" or not folder:
        raise SystemExit(f"--data {source}: expected digits or mnist=DIR")
    for part in ("train", "t10k"):
        images = _find(Path(folder), f"{part}-images")
        labels = _find(Path(folder), f"{part}-labels")
        if images and labels:
            x, y = _read(images), _read(labels)
            flat = torch.tensor(x.reshape(len(x), -1), dtype=torch.float32) / 255
            return Images(flat, torch.tensor(y.astype(np.int64)), x.shape[1])
    raise SystemExit(f"--data {source}: no idx files such as train-images-idx3-ubyte.gz there")


def _find(folder: Path, start: str) -> Path | None:
    return next(iter(sorted(folder.glob(f"{start}*"))), None)


def _read(path: Path) -> np.ndarray:
    """An idx file of bytes: zeros, the type 8, the number of axes, their lengths, the values."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise SystemExit(f"{path}: not an idx file of bytes")
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, 4).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if values.size != int(np.prod(shape)):
        raise SystemExit(f"{path}: it has {values.size} values where its head tells {tuple(shape)}")
    return values.reshape(shape)


def halves(images: Images, train: int) -> tuple[Images, Images]:
    """A part to train on and a part to test on, the same for every seed."""
    order = torch.randperm(len(images.y), generator=torch.Generator().manual_seed(0))
    return tuple(
        Images(images.x[rows], images.y[rows], images.side)
        for rows in (order[:train], order[train:])
    )
