"""Speed of tokenizers, in hours of media per minute: clips in batches against one by one; and peak memory.

Networks have their published architecture and random weights, which take as long as trained ones. Audio and video are
real clips of the 3-Equations corpus (preset smoke), cut or repeated to one length so that they can share a batch.
Encoders that learn are fitted on a few clips. On a CPU one thread is used, as in a worker.

    python benchmarks/tokenizing.py                 # all that can run on this machine
    python benchmarks/tokenizing.py image_dalle
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from harness import alternate, device, record, row
from memory import peak

from dmlm import paths, recipes
from dmlm.corpus import media
from dmlm.corpus.manifest import read_corpus
from dmlm.errors import UserError
from dmlm.plan.cell import CorpusChoice
from dmlm.sweep.parts import open_corpus
from dmlm.tokens.encoder import Reader, Tokenizer
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.quantize import Codebook

SECONDS, CLIPS = 4, {"audio": 16, "image": 16, "lips": 2}  # few of lips: an image network takes seconds for a video
READ = {"audio": media.read_audio, "lips": media.read_video, "image": media.read_image}
AS_RANDOM = {  # settings with which a recipe needs no weights
    "audio_ssl_kmeans": {"model": "random:hubert"},
    "audio_codec": {"model": "random:mimi"},
    "image_vit_kmeans": {"model": "random:vit"},
    "lips_ssl_kmeans": {
        "model": "random:dinov2",
        "architecture": {"hidden_size": 384, "num_attention_heads": 6},
    },  # small
    "audio_encoder_kmeans": {"steps": 2},
    "image_vqvae": {"steps": 10},
}
MEASUREMENT_S = 0.5  # at least


def clips(kind: str) -> list[np.ndarray]:
    """Read clips and bring them to equal shape."""
    (folder,) = (paths.home() / "corpora").glob("*-smoke-*")
    contents = [READ[kind](folder / getattr(u, kind)) for u in read_corpus(folder).split("train")[: CLIPS[kind]]]
    if kind == "image":
        return contents
    length = SECONDS * (media.SAMPLE_RATE_HZ if kind == "audio" else 25)
    return [np.resize(content, (length, *content.shape[1:])) for content in contents]


def ready_encoder(name: str) -> Tokenizer | Reader:
    """Open an encoder and give it random weights and centroids if it has none."""
    encoder = EncoderSpec(name, AS_RANDOM.get(name, {}), device=device().type).build()
    if isinstance(encoder, Reader):
        return encoder
    if encoder.learns:
        encoder.learned = encoder.fit(clips(encoder.media))
    if encoder.clusters:
        width = encoder.features_of(clips(encoder.media)[:1])[0].shape[1]
        centroids = np.random.default_rng(0).normal(size=(encoder.clusters, width))
        encoder.codebook = Codebook.plain(centroids.astype(np.float32))
    return encoder


def contestant(side: str, case: str) -> Callable[[], float]:
    """Return a function that encodes for a while and returns its speed, or, for the side `memory`, the peak in GiB."""
    torch.set_num_threads(1)
    encoder = ready_encoder(case)
    contents = clips(encoder.media)
    encode = encoder.read if isinstance(encoder, Reader) else encoder.encode
    per_clip = 1 if encoder.media == "image" else SECONDS / 60  # pages a second, else hours a minute

    def run() -> float:
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < MEASUREMENT_S:
            if side == "alone":
                for content in contents:
                    encode([content])
            else:
                encode(contents)
            done += len(contents)
        return peak() if side == "memory" else per_clip * done / (time.perf_counter() - start)

    return run


def main() -> None:
    """Measure the recipes given on the command line, or all that can run on this machine."""
    names = sys.argv[1:] or [name for name in recipes.names("tokenizers") if name != "ocr_oracle"]
    with tempfile.TemporaryDirectory() as home:
        os.environ["DMLM_HOME"] = home
        open_corpus(CorpusChoice(recipe="three_equations", preset="smoke"))
        for name in names:
            encoder = EncoderSpec(name, AS_RANDOM.get(name, {})).build()
            try:
                encoder.require()
            except UserError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            batched, alone, memory = alternate(__file__, name, ("batched", "alone", "memory"), rounds=3)
            unit = "pages/s" if encoder.media == "image" else "h/min"
            wanted = 2.0 if getattr(type(encoder), "network", None) else None
            title = f"{name} {AS_RANDOM.get(name, {}).get('model', '')}".strip()
            record(
                [
                    row(
                        f"{title}, batches of {CLIPS[encoder.media]} against one by one",
                        batched,
                        alone,
                        unit,
                        wanted,
                        f"{memory:.2f} GiB",
                    )
                ]
            )


if __name__ == "__main__":
    main()
