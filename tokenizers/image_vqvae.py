"""Image units of a small VQ-VAE (arXiv 1711.00937), trained on the training pages in minutes on one CPU core.

The input is the darkness of a page relative to its paper. A convolutional encoder maps each square of `stride` x `stride`
pixels, and its surroundings, to a vector. The unit of the square is the nearest of `codes` code vectors. A decoder draws
the page from its units:

    loss = |page - decoded|^2 + 0.25 |encoded - sg(code)|^2          sg: stop gradient

Each code is a moving average of the vectors assigned to it. A code with almost no vectors is reset to the vector of a
random square. The first tenth of the steps trains without quantisation; then k-means gives the first codes. Most of a
page is blank, so training crops are drawn mostly from around ink.

Shapes: B pages of H x W px, h x w squares, C channels of a code, K codes.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field

from dmlm.tokens.encoder import Settings as BaseSettings
from dmlm.tokens.encoder import Tokenizer

CROP_CELLS = 6  # side of a training crop, in squares
BATCH = 16  # crops per step
PAGES = 4000  # training pages at most
INK = 0.25  # difference from the paper above which a pixel counts as ink
BLANK = 0.1  # share of crops that are drawn from anywhere on a page
FIRST = 20  # batches whose squares are clustered to get the first codes
DEPTH = 32  # channels of a code, C
DECAY, RESTART = 0.99, 0.02  # of the moving averages; vectors per step below which a code is reset
COMMITMENT = 0.25  # weight of the second term of the loss
RATE, WARM_UP = 1e-3, 100  # learning rate; steps until it is reached


class Settings(BaseSettings):
    """A page of 450 x 200 px gives 29 x 13 = 377 units."""

    codes: int = Field(default=512, ge=2, le=FIRST * BATCH * CROP_CELLS**2)
    stride: Literal[8, 16, 32] = Field(default=16, description="side of the square of a unit, in pixels of the page")
    width: int = Field(default=128, ge=8, description="channels")
    steps: int = Field(default=3000, ge=10)


class LearnedUnits(Tokenizer):
    """Units in raster order. The page is padded with the grey of its paper to a whole number of squares."""

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
        """The network that `fit` learned, frozen."""
        import torch

        from dmlm.weights.frozen import on_device, with_weights

        if self.learned is None:
            raise TypeError("image_vqvae has learned no network yet; the engine calls fit before encoding")
        tensors = {name: torch.from_numpy(array) for name, array in self.learned.items()}
        return on_device(self.device, with_weights(lambda: build(self.settings), tensors, "image_vqvae"))

    def encode(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        """Units, int32 (T,), of each page, uint8 (H, W, 3)."""
        from dmlm.weights.frozen import in_equal_batches

        pages = [darkness(grey(page), self.settings.stride)[None] for page in batch]
        one = min(page.size for page in pages)  # a batch would round otherwise, and another of two codes be nearest
        rows = in_equal_batches(pages, one, lambda x: self.network.units(x).flatten(1), self.device)
        return [row.astype(np.int32) for row in rows]

    def draw(self, units: np.ndarray, height: int, width: int) -> np.ndarray:
        """Decode units (T,) to a page, uint8 (height, width): it shows what the units keep of a page."""
        import torch

        down, across = -(-height // self.settings.stride), -(-width // self.settings.stride)
        with torch.inference_mode():
            codes = self.network.codes[torch.from_numpy(units).long()].reshape(1, down, across, -1)
            dark = self.network.decoder(codes.permute(0, 3, 1, 2))[0, 0, :height, :width].cpu().numpy()
        return np.clip(255 * (1 - dark), 0, 255).round().astype(np.uint8)

    def fit(self, clips: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Learn encoder, codes and decoder, with one thread and seed 0: the same pages give the same network."""
        import torch
        from threadpoolctl import threadpool_limits

        indices = np.linspace(0, len(clips) - 1, min(len(clips), PAGES)).astype(int)
        crops = Crops([grey(clips[index]) for index in indices], self.settings.stride)
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
    """A page, uint8 (H, W, 3), in grey, uint8 (H, W)."""
    import cv2

    return cv2.cvtColor(page, cv2.COLOR_RGB2GRAY)


def darkness(page: np.ndarray, stride: int) -> np.ndarray:
    """Darkness relative to the paper, float32 in [-1, 1], of a grey page (H, W).

    The page is padded with paper, right and below, to multiples of `stride`.
    """
    dark = (np.float32(np.median(page)) - page.astype(np.float32)) / 255
    return np.pad(dark, [(0, -side % stride) for side in page.shape])


class Crops:
    """Random square crops of grey pages for training, most of them around ink. Pages are kept as uint8."""

    def __init__(self, pages: list[np.ndarray], stride: int) -> None:
        self.side = CROP_CELLS * stride
        pages = [np.pad(page, [(0, max(0, self.side - s)) for s in page.shape], mode="edge") for page in pages]
        self.pages = pages
        self.paper = [np.float32(np.median(page)) for page in pages]
        positions = []  # of ink: (page, row, column)
        for number, (page, paper) in enumerate(zip(pages, self.paper, strict=True)):
            rows, columns = np.nonzero(np.abs(page[::stride, ::stride] - paper) > 255 * INK)
            positions.append(np.stack([np.full_like(rows, number), rows * stride, columns * stride], axis=1))
        self.ink = np.concatenate(positions)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A batch of crops, as darkness, float32 (B, 1, side, side)."""
        rows = []
        for chance in rng.random(BATCH):
            if len(self.ink) and chance >= BLANK:
                number, *corner = self.ink[rng.integers(len(self.ink))]
                corner = [c - rng.integers(self.side) for c in corner]
            else:
                number = rng.integers(len(self.pages))
                corner = [rng.integers(side) for side in self.pages[number].shape]
            shape = self.pages[number].shape
            top, left = (min(max(0, c), side - self.side) for c, side in zip(corner, shape, strict=True))
            page = self.pages[number][top : top + self.side, left : left + self.side]
            rows.append((self.paper[number] - page.astype(np.float32)) / 255)
        return np.stack(rows)[:, None]


def build(settings: Settings) -> Any:
    """An untrained network. The names of its modules are the keys of the file that keeps what was learned."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        """Two convolutions with a residual connection."""

        def __init__(self, width: int) -> None:
            super().__init__()
            steps = nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
            self.path = nn.Sequential(*steps)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.path(x)

    class Network(nn.Module):
        """Encoder, codes and decoder. Each square is one position and its pixels are channels, which is fast on a CPU."""

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
    """Train a network with Adam and return it. The learning rate rises linearly, then falls to zero along a cosine."""
    import torch
    from torch.nn.functional import mse_loss

    from dmlm import progress

    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + np.cos(np.pi * step / steps))
    )
    codes, unquantized = network.codes, steps // 10
    counts, sums = torch.ones(len(codes)), codes.clone()
    with progress.bar("learning image_vqvae", steps, "step") as bar:
        for step in range(steps):
            pages = torch.from_numpy(crops.draw(rng))
            encoded = network.encoded(pages)
            if step < unquantized:
                decoder_input, commitment = encoded, torch.zeros(())
            else:
                vectors = encoded.detach().flatten(0, 2)
                if step == unquantized:
                    sums.copy_(first_codes(network, crops, rng))
                    codes.copy_(sums)
                move(codes, counts, sums, vectors, network.nearest(vectors))
                quantized = codes[network.nearest(encoded.detach())]
                commitment = COMMITMENT * mse_loss(encoded, quantized)
                decoder_input = encoded + (quantized - encoded).detach()  # straight-through gradient
            loss = mse_loss(network.decoder(decoder_input.permute(0, 3, 1, 2)), pages) + commitment
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)
            bar.update(1)
    return network


def first_codes(network: Any, crops: Crops, rng: np.random.Generator) -> Any:
    """First codes, (K, C): k-means centroids of the vectors of some crops."""
    import torch
    from sklearn.cluster import MiniBatchKMeans

    with torch.no_grad():
        parts = [network.encoded(torch.from_numpy(crops.draw(rng))).flatten(0, 2) for _ in range(FIRST)]
    means = MiniBatchKMeans(len(network.codes), batch_size=2048, n_init=1, max_iter=20, random_state=0)
    return torch.from_numpy(means.fit(torch.cat(parts).numpy()).cluster_centers_)


def move(codes: Any, counts: Any, sums: Any, vectors: Any, units: Any) -> None:
    """Move codes (K, C) towards the vectors (N, C) assigned to them by `units` (N,), in place.

    `counts` (K,) and `sums` (K, C) are moving averages. An idle code is reset to a random one of the vectors.
    """
    import torch

    counts.lerp_(torch.bincount(units, minlength=len(codes)).float(), 1 - DECAY)
    sums.lerp_(torch.zeros_like(sums).index_add_(0, units, vectors), 1 - DECAY)
    idle = counts < RESTART
    if number := int(idle.sum()):
        counts[idle] = 1.0
        sums[idle] = vectors[torch.randint(len(vectors), (number,))]
    codes.copy_(sums / counts[:, None])
