"""How fast tokenizers encode, in hours of media per minute: clips in batches against one by one; and peak memory.

Networks have their published architecture and random weights, which cost what learned ones cost. Audio and video are
real clips of the 3-Equations corpus (preset smoke) cut or repeated to one length, so that they can share a batch. What
is learned is learned on a few clips. One thread on a CPU, as in a worker.

    python benchmarks/tokenizing.py                 # all that can run here
    python benchmarks/tokenizing.py image_dalle
"""

import os
import sys
import tempfile
import time

import numpy as np
import torch
from harness import alternate, device, record, row
from memory import peak

from dmlm import paths, recipes
from dmlm.corpus import media
from dmlm.corpus.manifest import read_corpus
from dmlm.errors import UserError
from dmlm.plan.cell import CorpusChoice
from dmlm.sweep.materials import open_corpus
from dmlm.tokens.encoder import Reader, Tokenizer
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.quantize import Codebook

SECONDS, CLIPS = 4, {"audio": 16, "image": 16, "lips": 2}  # a network of images takes seconds for a clip of video
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
KEEP_EVERY_S = 0.5  # least time of one measurement


def clips(kind: str) -> list[np.ndarray]:
    """Real media of equal shape."""
    (folder,) = (paths.home() / "corpora").glob("*-smoke-*")
    found = [READ[kind](folder / getattr(u, kind)) for u in read_corpus(folder).split("train")[: CLIPS[kind]]]
    if kind == "image":
        return found
    length = SECONDS * (media.SAMPLE_RATE_HZ if kind == "audio" else 25)
    return [np.resize(item, (length, *item.shape[1:])) for item in found]


def opened(name: str) -> Tokenizer | Reader:
    """An encoder that can encode: with random weights and centroids where it has none."""
    encoder = EncoderSpec(name, AS_RANDOM.get(name, {}), device=device().type).build()
    if isinstance(encoder, Reader):
        return encoder
    if encoder.learns:
        encoder.learned = encoder.fit(clips(encoder.media))
    if encoder.clusters:
        width = encoder.features_of(clips(encoder.media)[:1])[0].shape[1]
        random = np.random.default_rng(0).normal(size=(encoder.clusters, width))
        encoder.codebook = Codebook.plain(random.astype(np.float32))
    return encoder


def contestant(side: str, case: str):
    """A function that encodes for a while: what it does per second, or, for `memory`, GiB used at most."""
    torch.set_num_threads(1)
    encoder = opened(case)
    given = clips(encoder.media)
    encode = encoder.read if isinstance(encoder, Reader) else encoder.encode
    units = 1 if encoder.media == "image" else SECONDS / 60  # pages a second; else hours a minute

    def run() -> float:
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < KEEP_EVERY_S:
            if side == "alone":
                for item in given:
                    encode([item])
            else:
                encode(given)
            done += len(given)
        return peak() if side == "memory" else units * done / (time.perf_counter() - start)

    return run


def main() -> None:
    """Measure the recipes named, or all that are ready."""
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
            what = f"{name} {AS_RANDOM.get(name, {}).get('model', '')}".strip()
            record(
                [
                    row(
                        f"{what}, batches of {CLIPS[encoder.media]} against one by one",
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
