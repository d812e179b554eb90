"""A k-means codebook: learned once on the training split, then frozen.

Shapes: N frames of the sample, T frames of one item, D features, K centroids.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dmlm import files
from dmlm.errors import UserError

BLOCK = 4096  # frames at a time: a long clip with many centroids must fit in memory


@dataclass(frozen=True)
class Codebook:
    """Centroids in normalised feature space, and the normalisation: x -> (x - mean) * scale."""

    centroids: np.ndarray  # (K, D) float32
    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)

    @property
    def size(self) -> int:
        return len(self.centroids)

    @property
    def digest(self) -> str:
        return hashlib.sha256(
            b"".join(array.tobytes() for array in (self.centroids, self.mean, self.scale))
        ).hexdigest()

    def assign(self, features: np.ndarray) -> np.ndarray:
        """Nearest centroid of each frame, int32 (T,): argmin_k |x - c_k|^2.

        Raises:
            UserError: a feature is NaN or infinite, so it has no nearest centroid.
        """
        square = np.square(self.centroids).sum(axis=1)
        ids = [np.empty(0, np.int32)]
        for start in range(0, len(features), BLOCK):
            x = (features[start : start + BLOCK] - self.mean) * self.scale  # (BLOCK, D)
            if not np.isfinite(x).all():
                raise UserError("A clip has features that are NaN or infinite; look at its file and at the network.")
            ids.append((2.0 * x @ self.centroids.T - square).argmax(axis=1).astype(np.int32))  # of (BLOCK, K)
        return np.concatenate(ids)

    def save(self, path: Path) -> None:
        with files.atomic(path) as temporary:
            save_file({"centroids": self.centroids, "mean": self.mean, "scale": self.scale}, temporary)
        files.seal(path)

    @classmethod
    def plain(cls, centroids: np.ndarray) -> "Codebook":
        """A codebook of published centroids (K, D), for features that are not normalised."""
        width = centroids.shape[1]
        return cls(centroids, np.zeros(width, np.float32), np.ones(width, np.float32))

    @classmethod
    def load(cls, path: Path) -> "Codebook":
        """Read what `save` wrote. A codebook of an earlier version has no `.sha256` file and is not checked.

        Raises:
            UserError: the file is damaged.
        """
        try:
            if files.sealed(path) or not path.with_suffix(".sha256").is_file():
                return cls(**load_file(path))
        except (SafetensorError, TypeError):
            pass
        raise UserError(f"Codebook {path} is damaged; remove it and run the same command, which learns it again.")


def learn_codebook(frames: np.ndarray, clusters: int, seed: int = 0) -> Codebook:
    """Mini-batch k-means on frames (N, D), each feature scaled to unit variance first.

    Raises:
        UserError: there are fewer frames than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(frames) < clusters:
        raise UserError(f"A codebook of {clusters} clusters needs as many frames; the sample has {len(frames)}.")
    mean, deviation = frames.mean(axis=0), frames.std(axis=0)
    scale = (1.0 / np.maximum(deviation, 1e-6 + 1e-3 * deviation.max())).astype(np.float32)
    means = MiniBatchKMeans(
        clusters,
        batch_size=4096,
        n_init=1,
        max_iter=100,
        max_no_improvement=20,
        reassignment_ratio=0.01,
        random_state=seed,
    )
    means.fit(((frames - mean) * scale).astype(np.float32))
    return Codebook(means.cluster_centers_.astype(np.float32), mean.astype(np.float32), scale)
