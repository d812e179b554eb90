"""Token IDs of frozen networks: on a GPU against on a CPU, and in a batch against alone.

Networks have random weights of published architectures. A codebook of their own output vectors makes IDs of features.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from gpu.steps import LeftOut, Row, Step, check, fact
from harness import device

from dmlm.tokens.quantize import Codebook
from dmlm.weights.frozen import in_equal_batches, on_device, open_model

Arrays = Sequence[np.ndarray]
MISMATCH = 0.01  # largest share of IDs that may differ: those between two codes that are nearly as near
NETWORKS: dict[
    str, tuple[tuple[int, ...], dict[str, Any], dict[str, Any]]
] = {  # input shape, architecture, at toy size
    "hubert": ((48_000,), {}, {"num_hidden_layers": 1}),
    "wavlm": ((48_000,), {}, {"num_hidden_layers": 1}),
    "wav2vec2": (  # XLS-R 1B, as in Seamless, with a quarter of its layers
        (48_000,),
        {
            "hidden_size": 1280,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "intermediate_size": 5120,
            "feat_extract_norm": "layer",
            "do_stable_layer_norm": True,
            "conv_bias": True,
        },
        {"num_hidden_layers": 1},
    ),
    "wav2vec2-bert": ((150, 160), {}, {"num_hidden_layers": 1}),
    "vit": ((3, 224, 224), {}, {"num_hidden_layers": 1}),
    "dinov2": ((3, 224, 224), {}, {"num_hidden_layers": 1}),
}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {  # recipe and settings by name
    "hubert": ("audio_ssl_kmeans", {"model": "random:hubert", "clusters": 500}),
    "whisper": ("audio_ssl_kmeans", {"model": "random:whisper", "layer": 3, "clusters": 500}),
    "w2v-bert": ("audio_ssl_kmeans", {"model": "random:wav2vec2-bert", "clusters": 500}),
    "mimi": ("audio_codec", {"model": "random:mimi"}),
    "vit": ("image_vit_kmeans", {"model": "random:vit", "clusters": 196}),
    "dinov2": ("lips_ssl_kmeans", {"model": "random:dinov2", "clusters": 25}),
}


def _compare(name: str, encode: Callable[[str, Arrays], Arrays], items: Arrays) -> Iterator[Row]:
    """Compare the IDs of items; `encode` takes the type of a device and the items."""
    here = device().type
    on_cpu, together = encode("cpu", items), encode(here, items)
    alone = [encode(here, [item])[0] for item in items]
    yield check(f"{name}: share of IDs that differ from a CPU", _mismatch(together, on_cpu), MISMATCH)
    yield check(f"{name}: share of IDs that differ alone", _mismatch(together, alone), MISMATCH)
    yield fact(f"{name}: number of different IDs", len(np.unique(np.concatenate(on_cpu))))


def _codebook(frames: np.ndarray, clusters: int) -> Codebook:
    """Return the middles of random pairs of frames as centroids, so that frames lie between centroids."""
    pairs = np.random.default_rng(0).integers(len(frames), size=(2, clusters))
    return Codebook.plain(frames[pairs].mean(axis=0))


def _mismatch(some: Arrays, others: Arrays) -> float:
    return float(np.mean(np.concatenate([a != b for a, b in zip(some, others, strict=True)])))


def networks(toy: bool) -> Iterator[Row]:
    """Networks of transformers, opened and read as recipes do."""
    for name, (shape, architecture, small) in NETWORKS.items():
        network = open_model("benchmark", f"random:{name}", None, architecture | (small if toy else {}))
        items = _items(shape, 2 if toy else 8)
        codebooks: list[Codebook] = []

        def encode(kind: str, items: Arrays, network: Any = network, codebooks: list[Codebook] = codebooks) -> Arrays:
            on_device(kind, network)
            features = in_equal_batches(items, 4 * items[0].size, lambda x: network(x).last_hidden_state, kind)
            if not codebooks:
                codebooks.append(_codebook(np.concatenate(features), 500))
            return [codebooks[0].assign(rows) for rows in features]

        yield from _compare(name, encode, items)


def _items(shape: tuple[int, ...], count: int) -> Arrays:
    """Return noise with a changing loudness, so that vectors differ over time."""
    rng = np.random.default_rng(0)
    wave = np.sin(np.linspace(0, 40, shape[-1])) + 1.2
    return [(rng.normal(size=shape) * wave).astype(np.float32) for _ in range(count)]


def recipes(toy: bool) -> Iterator[Row]:
    """The recipes of `tokenizers/`, whose settings need pydantic."""
    try:
        from dmlm.tokens.encoding import EncoderSpec
    except ModuleNotFoundError as error:
        raise LeftOut(f"{error.name} is not installed; recipes need it for their settings") from None

    rng = np.random.default_rng(0)
    wave = (np.sin(np.linspace(0, 90, 48_000)) + 1.2) * 0.1
    media = {
        "audio": [(rng.normal(size=48_000) * wave).astype(np.float32) for _ in range(4)],
        "image": [rng.integers(0, 256, (96, 200, 3), np.uint8) for _ in range(4)],
        "lips": [rng.integers(0, 256, (12, 96, 96), np.uint8) for _ in range(2)],
    }
    for name, (recipe, settings) in RECIPES.items():
        if toy and name not in ("whisper", "vit"):
            continue
        first: Any = EncoderSpec(recipe, settings).build()
        items, codebook = media[first.media], None
        if first.clusters:
            codebook = _codebook(np.concatenate(first.features_of(items)), first.clusters)
        encoders = {"cpu": first, device().type: EncoderSpec(recipe, settings, device=device().type).build()}
        for encoder in encoders.values():
            encoder.codebook = codebook
        yield from _compare(f"{recipe} {name}", lambda kind, items, e=encoders: e[kind].encode(list(items)), items)


STEPS = [Step("networks", "right", 120, networks), Step("tokenizer recipes", "right", 120, recipes)]
