"""What every tokenizer must satisfy, published ones at a reduced size with random weights in the published layout."""

import importlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmlm import recipes
from dmlm.corpus import media
from dmlm.corpus.manifest import read_corpus
from dmlm.tokens.encoder import Encoder, Reader, Tokenizer
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.quantize import Codebook, learn_codebook
from dmlm.weights import published

READ = {"audio": media.read_audio, "lips": media.read_video, "image": media.read_image}
SMALL: dict[str, Callable[[], dict[str, Any]]] = {  # settings; what weights they need is written first
    name: make
    for path in sorted(Path(__file__).parent.glob("small_*_encoders.py"))
    for name, make in importlib.import_module(path.stem).SMALL.items()
}
NAMES = recipes.names("tokenizers")
TOKENIZERS = [name for name in NAMES if not name.startswith("ocr_")]


@pytest.fixture(scope="module")
def clips(finished, home) -> dict[str, list[np.ndarray]]:
    """Media of a few utterances of real synthetic speech, by manifest field."""
    (folder,) = (home / "corpora").glob("*-smoke-*")
    utterances = read_corpus(folder).split("train")[:12]
    return {kind: [read(folder / getattr(u, kind)) for u in utterances] for kind, read in READ.items()}


@pytest.fixture(scope="module")
def build(tmp_path_factory, clips):
    """Encoders by name, each learned once; what is learned is taken over when one is built again."""
    patch = pytest.MonkeyPatch()
    patch.setenv("DMLM_HOME", str(tmp_path_factory.mktemp("home")))
    chosen: dict[str, dict[str, Any]] = {}
    learned: dict[str, Tokenizer] = {}

    def made(name: str, **more: Any) -> Any:
        if name not in chosen:
            chosen[name] = SMALL[name]()
        encoder = EncoderSpec(name, {**chosen[name], **more}).build()
        try:
            encoder.require()
        except Exception as missing:
            pytest.skip(str(missing))
        if not isinstance(encoder, Tokenizer) or more:
            return encoder
        if name not in learned:
            if encoder.learns:
                encoder.learned = encoder.fit(clips[encoder.media])
            if encoder.clusters:
                frames = np.concatenate(encoder.features_of(clips[encoder.media]))
                encoder.codebook = learn_codebook(frames, encoder.clusters)
            learned[name] = encoder
        encoder.learned, encoder.codebook = learned[name].learned, learned[name].codebook
        return encoder

    yield made
    patch.undo()


def test_every_recipe_is_here() -> None:
    assert set(SMALL) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_facts(name, build) -> None:
    encoder = build(name)
    assert encoder.modality == {"audio": "A", "lips": "L", "image": "I", "ocr": "O"}[name.partition("_")[0]]
    assert encoder.recipe == name
    if isinstance(encoder, Tokenizer):
        assert encoder.vocab_size >= 2
        assert (encoder.rate_hz is None) == (encoder.modality == "I")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_are_in_range_and_as_many_as_the_clock_says(name, build, clips) -> None:
    encoder, given = build(name), clips[build(name).media]
    for item, ids in zip(given, encoder.encode(given), strict=True):
        assert ids.ndim == 1
        assert np.issubdtype(ids.dtype, np.integer)
        assert ids.min() >= 0
        assert ids.max() < encoder.vocab_size
        if encoder.rate_hz:
            seconds = len(item) / (media.SAMPLE_RATE_HZ if encoder.media == "audio" else 25)
            assert len(ids) == pytest.approx(seconds * encoder.rate_hz, abs=2)


@pytest.mark.parametrize("name", NAMES)
def test_company_and_order_change_nothing(name, build, clips) -> None:
    encoder = build(name)
    given = clips.get(encoder.media) or ["2 x + 3 = 5", "y = 1", "7 / 2"]
    encode = encoder.read if isinstance(encoder, Reader) else encoder.encode
    together, backwards = encode(given), encode(given[::-1])[::-1]
    alone = [encode([item])[0] for item in given]
    for one, other, third in zip(together, backwards, alone, strict=True):
        assert np.array_equal(one, other)
        assert np.array_equal(one, third)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_on_a_cpu_an_item_is_computed_as_if_it_were_alone(name, build, clips, monkeypatch) -> None:
    """Whatever the CPU rounds: every layer, and the search for the nearest code, is given the same shapes."""
    encoder = build(name)
    if not encoder.clusters and not hasattr(type(encoder), "network"):
        pytest.skip("its engine is no network of torch; it is given one clip at a time")
    one = clips[encoder.media][0]
    other = one[::-1].copy()
    encoder.encode([one])  # opens the network
    seen: list[tuple[int, ...]] = []

    def note(layer: Any, given: tuple[Any, ...]) -> None:
        seen.extend(tuple(each.shape) for each in given if hasattr(each, "shape"))

    assign = Codebook.assign
    monkeypatch.setattr(Codebook, "assign", lambda self, x: seen.append(x.shape) or assign(self, x))
    layers = [m for m in encoder.network.modules() if not list(m.children())] if hasattr(encoder, "network") else []
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    encoder.encode([one])
    alone = len(seen)
    encoder.encode([one, other])
    for hook in hooks:
        hook.remove()
    assert alone
    assert Counter(seen) == Counter(seen[:alone] * 3)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_encoding_trains_nothing(name, build, clips) -> None:
    encoder = build(name)
    encoder.encode(clips[encoder.media][:1])
    network = getattr(encoder, "network", None)
    if network is not None:
        assert not network.training
        before = {key: value.clone() for key, value in network.state_dict().items()}
        encoder.encode(clips[encoder.media][:3])
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())
        assert all((before[key] == value).all() for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_is_stable_and_known_without_opening_a_network(name, build) -> None:
    build(name)  # the first one of a process learns, which opens its network
    first, second = build(name), build(name)
    assert first.fingerprint == second.fingerprint
    assert "network" not in vars(first)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_that_can_be_set_enters_the_fingerprint(name, build) -> None:
    encoder = build(name)
    for key in type(encoder).Settings.model_fields:
        value = getattr(encoder.settings, key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            other = type(encoder)(encoder.settings.model_copy(update={key: value - 1}))
            plain = type(encoder)(encoder.settings)
            assert other.fingerprint != plain.fingerprint, key


@pytest.mark.parametrize("name", TOKENIZERS)
def test_other_weights_are_another_tokenizer(name, build) -> None:
    encoder = build(name)
    if encoder.card is None:
        pytest.skip("needs no published weights")
    before = encoder.fingerprint
    files = published.local_files(encoder.card, name)
    assert files
    kept = files[-1].read_bytes()
    files[-1].write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    try:
        assert build(name).fingerprint != before
    finally:
        files[-1].write_bytes(kept)


LIMITED = """
import json, resource, sys
import numpy as np
from dmlm.tokens.quantize import Codebook, learn_codebook
from dmlm.tokens.encoding import EncoderSpec
name, settings = sys.argv[1], json.loads(sys.argv[2])
encoder = EncoderSpec(name, settings).build()
speech = np.random.default_rng(0).normal(0, 0.05, 40 * 60 * 16000).astype(np.float32)
if encoder.learns:
    encoder.learned = encoder.fit([speech[i * 32000 : (i + 1) * 32000] for i in range(8)])
if encoder.clusters:
    encoder.codebook = learn_codebook(np.concatenate(encoder.features_of([speech[: 16000 * 30]])), encoder.clusters)
encoder.encode([speech[:16000]])
resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
print(len(encoder.encode([speech])[0]) / 2400 / encoder.rate_hz)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.startswith("audio_")])
def test_forty_minutes_fit_in_memory(name, build) -> None:
    """What a clip of 40 minutes takes is bounded: it is read in pieces."""
    encoder = build(name)
    settings = encoder.settings.model_dump(mode="json")
    script = [sys.executable, "-c", LIMITED, name, json.dumps(settings)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
    assert float(done.stdout.split()[-1]) == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_one_sentence_with_the_command(name, build, monkeypatch) -> None:
    kind = recipes.load_class("tokenizers", name, Encoder)
    if not kind.packages:
        pytest.skip("needs no package of its own")
    monkeypatch.setattr("dmlm.tokens.encoder.importable", lambda package: False)
    with pytest.raises(Exception, match=r"missing; run: pip install"):
        EncoderSpec(name, {}).build().require()
