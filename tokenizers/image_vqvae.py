"""Image units of a small VQ-VAE (arXiv 1711.00937) that is learned on the training pages, in minutes on one CPU core.

A page is its darkness relative to the paper. A convolutional encoder makes a vector of each square of `stride` x `stride`
pixels and its surroundings, the nearest of `codes` vectors is its unit, and a decoder draws the page from units alone:

    loss = |page - decoded|^2 + 0.25 |encoded - sg(code)|^2

Codes are moving averages of what chose them. A code that hardly anything chooses starts anew at some encoded square.
Before quantisation sets in, the network learns for a tenth of the steps without; k-means then places the first codes.
Squares with ink are learned from more often than they occur, since most of a page is blank.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer

CROP_CELLS = 6  # side of a training crop, in squares
BATCH = 16  # crops of a step
PAGES = 4000  # at most as many are learned from
INK = 0.25  # darkness that makes a square worth a look
BLANK = 0.1  # share of crops that are taken anywhere
FIRST = 20  # batches whose squares the first codes are means of
DEPTH = 32  # of a code
DECAY, RESTART = 0.99, 0.02  # of the moving averages; choices per step below which a code starts anew
COMMITMENT = 0.25
RATE, WARM_UP = 1e-3, 100  # of learning, and steps until it is reached


class Settings(BaseSettings):
    """A 450 x 200 px page gives 29 x 13 = 377 units."""

    codes: int = Field(default=512, ge=2, le=FIRST * BATCH * CROP_CELLS**2)
    stride: Literal[8, 16, 32] = Field(default=16, description="side of the square of a unit, in pixels of the page")
    width: int = Field(default=128, ge=8, description="channels")
    steps: int = Field(default=3000, ge=10)


class LearnedUnits(Tokenizer):
    """Units in raster order; the page is continued with its paper to a whole number of squares."""

    modality = "I"
    media = "image"
    learns = True
    Settings = Settings

    @property
    def vocab_size(self) -> int:
        return self.settings.codes

    @property
    def rate_hz(self) -> None:
        return None

    @cached_property
    def network(self) -> Any:
        """The network that `fit` gave, frozen."""
        import torch

        from dmlm.weights.frozen import loaded, on

        if self.learned is None:
            raise TypeError("image_vqvae has learned no network yet; the engine calls fit before encoding")
        tensors = {name: torch.from_numpy(array) for name, array in self.learned.items()}
        return on(self.device, loaded(lambda: build(self.settings), tensors, "image_vqvae"))

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Units int32 (T,) of each page, uint8 (H, W, 3)."""
        from dmlm.weights.frozen import in_equal_batches

        pages = [darkness(grey(page), self.settings.stride)[None] for page in batch]
        one = min(page.size for page in pages)  # a batch would round otherwise, and another of two codes be nearest
        rows = in_equal_batches(pages, one, lambda x: self.network.units(x).flatten(1), self.device)
        return [row.astype(np.int32) for row in rows]

    def draw(self, units: np.ndarray, height: int, width: int) -> np.ndarray:
        """The page uint8 (height, width) that the decoder draws from units (T,): what a sequence model is told."""
        import torch

        down, across = -(-height // self.settings.stride), -(-width // self.settings.stride)
        with torch.inference_mode():
            codes = self.network.codes[torch.from_numpy(units).long()].reshape(1, down, across, -1)
            dark = self.network.decoder(codes.permute(0, 3, 1, 2))[0, 0, :height, :width].cpu().numpy()
        return np.clip(255 * (1 - dark), 0, 255).round().astype(np.uint8)

    def fit(self, clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Learn encoder, codes and decoder; one thread and seed 0, so that equal pages give an equal network."""
        import torch
        from threadpoolctl import threadpool_limits

        kept = np.linspace(0, len(clips) - 1, min(len(clips), PAGES)).astype(int)
        crops = Crops([grey(clips[number]) for number in kept], self.settings.stride)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.random.fork_rng(devices=[]), threadpool_limits(1):
                torch.manual_seed(0)
                network = learn(build(self.settings), crops, self.settings.steps)
        finally:
            torch.set_num_threads(threads)
        return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def grey(page: np.ndarray) -> np.ndarray:
    """Grey uint8 (H, W) of a page uint8 (H, W, 3)."""
    import cv2

    return cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)


def darkness(page: np.ndarray, stride: int) -> np.ndarray:
    """Darkness relative to the paper, float32 in [-1, 1], of a grey page; right and below, paper fills the last squares."""
    dark = (np.float32(np.median(page)) - page.astype(np.float32)) / 255
    return np.pad(dark, [(0, -side % stride) for side in page.shape])


class Crops:
    """Squares of pages to learn from, most of them around ink. Pages are kept as uint8."""

    def __init__(self, pages: list[np.ndarray], stride: int) -> None:
        self.side = CROP_CELLS * stride
        pages = [np.pad(page, [(0, max(0, self.side - s)) for s in page.shape], mode="edge") for page in pages]
        self.pages = pages
        self.paper = [np.float32(np.median(page)) for page in pages]
        places = []
        for number, (page, paper) in enumerate(zip(pages, self.paper, strict=True)):
            rows, columns = np.nonzero(np.abs(page[::stride, ::stride] - paper) > 255 * INK)
            places.append(np.stack([np.full_like(rows, number), rows * stride, columns * stride], axis=1))
        self.inked = np.concatenate(places)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A batch of darkness, float32 (B, 1, side, side)."""
        rows = []
        for chance in rng.random(BATCH):
            if len(self.inked) and chance >= BLANK:
                number, *at = self.inked[rng.integers(len(self.inked))]
                at = [corner - rng.integers(self.side) for corner in at]
            else:
                number = rng.integers(len(self.pages))
                at = [rng.integers(side) for side in self.pages[number].shape]
            top, left = (min(max(0, c), side - self.side) for c, side in zip(at, self.pages[number].shape, strict=True))
            page = self.pages[number][top : top + self.side, left : left + self.side]
            rows.append((self.paper[number] - page.astype(np.float32)) / 255)
        return np.stack(rows)[:, None]


def build(settings: Settings) -> Any:
    """An untrained network. B pages of H x W px, C channels of a code, K codes; h x w squares."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        """Two convolutions beside the identity."""

        def __init__(self, width: int) -> None:
            super().__init__()
            steps = nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
            self.path = nn.Sequential(*steps)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.path(x)

    class Network(nn.Module):
        """Encoder, codes and decoder. All convolutions are between squares, whose pixels are channels: fast on a CPU."""

        codes: torch.Tensor  # (K, C)

        def __init__(self, codes: int, stride: int, width: int) -> None:
            super().__init__()
            self.encoder = nn.Sequential(
                nn.PixelUnshuffle(stride),
                nn.Conv2d(stride**2, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 1),
                Residual(width),
                nn.ReLU(),
                nn.Conv2d(width, DEPTH, 1),
            )
            self.decoder = nn.Sequential(
                nn.Conv2d(DEPTH, width, 3, padding=1),
                Residual(width),
                nn.ReLU(),
                nn.Conv2d(width, stride**2, 3, padding=1),
                nn.PixelShuffle(stride),
            )
            self.register_buffer("codes", torch.zeros(codes, DEPTH))

        def encoded(self, x: torch.Tensor) -> torch.Tensor:
            """(B, 1, H, W) -> (B, h, w, C)."""
            return self.encoder(x).permute(0, 2, 3, 1)

        def nearest(self, vectors: torch.Tensor) -> torch.Tensor:
            """(..., C) -> units (...): argmin_k |x - c_k|^2."""
            return (2 * vectors @ self.codes.T - self.codes.square().sum(1)).argmax(-1)

        def units(self, x: torch.Tensor) -> torch.Tensor:
            """(B, 1, H, W) -> (B, h, w)."""
            return self.nearest(self.encoded(x))

    return Network(settings.codes, settings.stride, settings.width)


def learn(network: Any, crops: Crops, steps: int) -> Any:
    """Adam, its rate rising for a few steps, then falling to nothing along a cosine."""
    import torch
    from torch.nn.functional import mse_loss

    from dmlm import progress

    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + np.cos(np.pi * step / steps))
    )
    codes, unquantized = network.codes, steps // 10
    counts, sums = torch.ones(len(codes)), codes.clone()
    with progress.bar("learning image_vqvae", steps, "step") as shown:
        for step in range(steps):
            pages = torch.from_numpy(crops.draw(rng))
            encoded = network.encoded(pages)
            if step < unquantized:
                chosen, commitment = encoded, torch.zeros(())
            else:
                vectors = encoded.detach().flatten(0, 2)
                if step == unquantized:
                    sums.copy_(first_codes(network, crops, rng))
                    codes.copy_(sums)
                move(codes, counts, sums, vectors, network.nearest(vectors))
                quantized = codes[network.nearest(encoded.detach())]
                commitment = COMMITMENT * mse_loss(encoded, quantized)
                chosen = encoded + (quantized - encoded).detach()
            loss = mse_loss(network.decoder(chosen.permute(0, 3, 1, 2)), pages) + commitment
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
            shown.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)
            shown.update(1)
    return network


def first_codes(network: Any, crops: Crops, rng: np.random.Generator) -> Any:
    """k-means of what the encoder gives for some crops, (K, C)."""
    import torch
    from sklearn.cluster import MiniBatchKMeans

    with torch.no_grad():
        parts = [network.encoded(torch.from_numpy(crops.draw(rng))).flatten(0, 2) for _ in range(FIRST)]
    means = MiniBatchKMeans(len(network.codes), batch_size=2048, n_init=1, max_iter=20, random_state=0)
    return torch.from_numpy(means.fit(torch.cat(parts).numpy()).cluster_centers_)


def move(codes: Any, counts: Any, sums: Any, vectors: Any, chosen: Any) -> None:
    """Codes follow the vectors (N, C) that chose them, in place; idle ones start anew at one of these."""
    import torch

    counts.lerp_(torch.bincount(chosen, minlength=len(codes)).float(), 1 - DECAY)
    sums.lerp_(torch.zeros_like(sums).index_add_(0, chosen, vectors), 1 - DECAY)
    idle = counts < RESTART
    if number := int(idle.sum()):
        counts[idle] = 1.0
        sums[idle] = vectors[torch.randint(len(vectors), (number,))]
    codes.copy_(sums / counts[:, None])
