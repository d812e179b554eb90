"""Audio encoders against what they stand for, at a reduced size with random weights.

Seamless: its packages do not install next to this torch, so the arithmetic of `UnitExtractor.predict` is written out
here from its source (seamless_communication 90e2b57, fairseq2 0.2), on a network of full depth. The others: the model
and the feature extractor of `transformers`, of full depth, called as their pages show.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_audio_encoders import (
    RATE,
    SPEECH,
    TINY_WAV2VEC,
    build,
    fairseq2_names,
    fairseq_names,
    noise,
    speech_model,
    wav2vec,
)
from transformers import (
    AutoConfig,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperFeatureExtractor,
)

from dmlm.errors import UserError
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.quantize import learn_codebook
from dmlm.weights import published

STABLE = ["wav2vec2", "whisper"]  # families here whose encoder ends in a normalisation


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    return tmp_path


# Seamless


@pytest.fixture(params=[fairseq_names, fairseq2_names])
def seamless(request, home):
    """The network of full depth, its centroids, and the folder that holds both in one of the two published layouts."""
    network, centroids = wav2vec(5), np.random.default_rng(0).normal(size=(50, 64)).astype(np.float32)
    folder = published.folder("audio_seamless")
    folder.mkdir(parents=True)
    torch.save({"model": request.param(network.state_dict())}, folder / "xlsr2_1b_v2.pt")
    np.save(folder / "kmeans_10k.npy", centroids)
    return network, centroids, folder


def predict(network, centroids, clip, out_layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`UnitExtractor.predict`, written out: the layer's output (T, D) and units (T,). `out_layer_idx` is from 0."""
    audio = torch.from_numpy(clip)[None]
    if audio.shape[1] % 2:  # Collater(pad_value=1, pad_to_multiple=2)
        audio = F.pad(audio, (0, 1), value=1.0)
    heard = []
    hook = network.encoder.layers[out_layer_idx].register_forward_hook(lambda m, i, out: heard.append(out))
    with torch.inference_mode():
        network(F.layer_norm(audio, audio.shape))
    hook.remove()
    x = (heard[0] if isinstance(heard[0], torch.Tensor) else heard[0][0])[0]
    C = torch.from_numpy(centroids).t()
    distance = x.pow(2).sum(1, keepdim=True) - 2 * torch.matmul(x, C) + (C**2).sum(0, keepdim=True)
    return x, distance.argmin(dim=-1)


@pytest.mark.parametrize("samples", [16_000, 15_999, 24_001, 400])
def test_seamless_gives_the_units_of_its_extractor(seamless, samples) -> None:
    network, centroids, _ = seamless
    encoder, clip = build("audio_seamless", layer=3, architecture=TINY_WAV2VEC), noise(samples)
    features, units = predict(network, centroids, clip, 3 - 1)
    np.testing.assert_allclose(encoder.features_of([clip])[0], features, atol=2e-5)
    assert encoder.encode([clip])[0].tolist() == units.tolist()
    assert len(units) == (samples + samples % 2 - 400) // 320 + 1
    assert len(set(units.tolist())) > 3 or samples == 400
    assert encoder.vocab_size == 50


def test_seamless_in_pieces_has_the_frames_of_the_whole(seamless) -> None:
    clip = noise(5 * RATE + 7)
    whole, cut = (build("audio_seamless", layer=3, architecture=TINY_WAV2VEC, longest_s=s) for s in (60, 1))
    one, other = whole.features_of([clip])[0], cut.features_of([clip])[0]
    assert one.shape == other.shape == ((len(clip) + 1 - 400) // 320 + 1, 64)
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9  # scaled over the whole clip; only edges differ


def test_mistakes_with_seamless(seamless) -> None:
    encoder = build("audio_seamless", layer=3, architecture=TINY_WAV2VEC)
    with pytest.raises(UserError, match=r"shape \(399,\); give mono speech"):
        encoder.encode([noise(399)])
    with pytest.raises(UserError, match=r"shape \(16000, 2\); give mono speech"):
        encoder.encode([np.zeros((16_000, 2), np.float32)])
    with pytest.raises(UserError, match=r"encoder\.layers\.5\..* is missing; these are the weights of another"):
        build("audio_seamless", layer=6, architecture=TINY_WAV2VEC).encode([noise(RATE)])
    np.save(seamless[2] / "kmeans_10k.npy", np.zeros((50, 63), np.float32))
    with pytest.raises(UserError, match="centroids of 63 features, and the layer gives 64"):
        _ = build("audio_seamless", layer=3, architecture=TINY_WAV2VEC).vocab_size


# audio_ssl_kmeans


def inputs(family: str, clip: np.ndarray, **chosen) -> dict[str, torch.Tensor]:
    """What the feature extractor of `transformers` makes of a clip."""
    kind = {"wav2vec2-bert": SeamlessM4TFeatureExtractor, "whisper": WhisperFeatureExtractor}
    extractor = kind.get(family, Wav2Vec2FeatureExtractor)(**chosen)
    return dict(extractor(clip, sampling_rate=RATE, return_tensors="pt"))


def states(family: str, model, clip: np.ndarray, **chosen) -> list[np.ndarray]:
    """`hidden_states` of a model of full depth, those frames that are not padding."""
    with torch.inference_mode():
        network = model.encoder if family == "whisper" else model
        found = network(**inputs(family, clip, **chosen), output_hidden_states=True).hidden_states
    frames = {"whisper": len(clip) // 320, "wav2vec2-bert": ((len(clip) - 400) // 160 + 1) // 2}
    return [state[0, : frames.get(family)].numpy() for state in found]


@pytest.mark.parametrize("family", SPEECH)
@pytest.mark.parametrize("samples", [16_000, 24_161])
def test_speech_features_are_the_hidden_states_of_transformers(family, samples, home) -> None:
    model, clip = speech_model(home / family, family), noise(samples)
    wanted = states(family, model, clip)
    for layer in (1, 3):
        encoder = build("audio_ssl_kmeans", model=home / family, layer=layer)
        np.testing.assert_allclose(encoder.features_of([clip])[0], wanted[layer], atol=1e-4)
        layers = encoder.network.layers if family == "whisper" else encoder.network.encoder.layers
        assert len(layers) == layer


@pytest.mark.parametrize("family", SPEECH)
def test_the_last_layer_is_taken_before_the_final_normalisation(family, home) -> None:
    model, clip = speech_model(home / family, family), noise(RATE)
    network = model.encoder if family == "whisper" else model
    last = build("audio_ssl_kmeans", model=home / family, layer=4).features_of([clip])[0]
    with torch.inference_mode():
        wanted = network(**inputs(family, clip)).last_hidden_state[0, : len(last)]
        norm = {"whisper": network.get_submodule("layer_norm")} if family == "whisper" else {}
        norm |= {"wav2vec2": network.encoder.layer_norm} if family == "wav2vec2" else {}
        found = norm[family](torch.from_numpy(last)) if family in STABLE else last
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_audio_is_scaled_only_where_the_model_wants_it(home) -> None:
    model, clip = speech_model(home / "raw", "wavlm", do_normalize=False), noise(RATE)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(clip)[None], output_hidden_states=True).hidden_states[2][0]
    found = build("audio_ssl_kmeans", model=home / "raw", layer=2).features_of([clip])[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_recogniser_published_without_its_mask_is_read(home) -> None:
    """As facebook/wav2vec2-base-960h is: names with a prefix, a head, and no `masked_spec_embed`."""
    torch.manual_seed(0)
    model = Wav2Vec2ForCTC(Wav2Vec2Config(**SPEECH["wav2vec2"])).eval()
    tensors = {k: v for k, v in model.state_dict().items() if "masked_spec_embed" not in k}
    model.save_pretrained(home / "ctc", state_dict=tensors)
    (home / "ctc" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    clip = noise(RATE)
    found = build("audio_ssl_kmeans", model=home / "ctc", layer=2).features_of([clip])[0]
    np.testing.assert_allclose(found, states("wav2vec2", model.wav2vec2, clip)[2], atol=1e-4)


@pytest.mark.parametrize("family", SPEECH)
def test_a_long_clip_has_the_frames_of_the_whole(family, home) -> None:
    clips = [noise(5 * RATE + extra) for extra in (0, 7, 100, 399)]
    settings = {"model": f"random:{family}", "architecture": SPEECH[family], "layer": 2}
    whole, cut = (build("audio_ssl_kmeans", **settings, longest_s=s).features_of(clips) for s in (60, 2))
    assert [len(x) for x in whole] == [len(x) for x in cut]
    assert [len(x) / 5 for x in whole] == pytest.approx([50] * 4, abs=0.5)


@pytest.mark.parametrize(("at_once_s", "duration_s"), [(30, 32), (10, 25)])
def test_whisper_hears_at_once_what_it_has_positions_for(at_once_s, duration_s, home) -> None:
    model = speech_model(home / "whisper", "whisper", max_source_positions=50 * at_once_s)
    WhisperFeatureExtractor(chunk_length=at_once_s).save_pretrained(home / "whisper")
    clip, most = noise(duration_s * RATE), at_once_s * RATE
    found = build("audio_ssl_kmeans", model=home / "whisper", layer=2).features_of([clip])[0]
    assert len(found) == 50 * duration_s
    parts = [clip[start : start + most] for start in range(0, len(clip), most)]
    wanted = [states("whisper", model, part, chunk_length=at_once_s)[2] for part in parts]
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-4)


def test_whisper_reads_as_far_as_the_clip_goes(home) -> None:
    """The network of transformers, built for just so many positions, hears what the full window holds of the clip."""
    model, clip = speech_model(home / "whisper", "whisper"), noise(24_161)
    frames = len(clip) // 320
    tensors = model.encoder.state_dict()
    tensors["embed_positions.weight"] = tensors["embed_positions.weight"][:frames]
    config = AutoConfig.for_model("whisper", **SPEECH["whisper"], max_source_positions=frames)
    short = type(model.encoder)(config).eval()
    short.load_state_dict(tensors)
    mel = inputs("whisper", clip)["input_features"][..., : 2 * frames]
    with torch.inference_mode():
        wanted = short(mel, output_hidden_states=True).hidden_states[2][0]
    found, full = (build("audio_ssl_kmeans", model=home / "whisper", layer=2, window=w) for w in ("clip", "full"))
    np.testing.assert_allclose(found.features_of([clip])[0], wanted, atol=1e-4)
    assert not np.allclose(full.features_of([clip])[0], wanted, atol=1e-2)
    assert found.fingerprint != full.fingerprint


@pytest.mark.parametrize("duration_s", [2, 5])
def test_whisper_reads_alike_what_fills_its_window(duration_s, home) -> None:
    """Of a clip of five seconds the first four fill two windows; the last second does not."""
    speech_model(home / "whisper", "whisper", max_source_positions=100)
    clip = noise(duration_s * RATE)
    short, full = (
        build("audio_ssl_kmeans", model=home / "whisper", layer=2, window=w).features_of([clip])[0]
        for w in ("clip", "full")
    )
    assert len(short) == len(full) == 50 * duration_s
    assert np.array_equal(short[:200], full[:200])


def test_clips_of_any_length_are_read_alone(home) -> None:
    clips = [noise(samples, seed) for seed, samples in enumerate((320, 8_000, 8_000, 8_319, 16_000))]
    encoder = tiny(model="random:whisper", architecture=SPEECH["whisper"], window="clip")
    alone = [encoder.features_of([clip])[0] for clip in clips]
    assert [len(features) for features in alone] == [1, 25, 25, 25, 50]
    for one, other in zip(alone, encoder.features_of(clips), strict=True):
        assert np.array_equal(one, other)


def test_only_whisper_has_a_window(home) -> None:
    with pytest.raises(
        UserError, match="window=clip is for Whisper, and random:hubert is a hubert, which always reads"
    ):
        tiny(window="clip").require()


def tiny(**more) -> Tokenizer:
    settings = {"model": "random:hubert", "architecture": SPEECH["hubert"], "layer": 2, "clusters": 20}
    return build("audio_ssl_kmeans", **{**settings, **more})


def test_given_centroids_are_used_as_they_are(home) -> None:
    clip, other = noise(RATE), home / "moved.npy"
    features = tiny().features_of([clip])[0]
    np.save(home / "c.npy", centroids := features[::5].copy())
    encoder = tiny(clusters=None, centroids=home / "c.npy")
    wanted = torch.cdist(torch.from_numpy(features), torch.from_numpy(centroids)).argmin(dim=1)
    assert encoder.encode([clip])[0].tolist() == wanted.tolist()
    assert encoder.clusters is None
    assert encoder.vocab_size == len(centroids)
    before = encoder.fingerprint
    np.save(home / "c.npy", centroids + 1)
    assert tiny(clusters=None, centroids=home / "c.npy").fingerprint != before
    np.save(other, centroids[:, 1:])
    with pytest.raises(UserError, match="centroids of 31 features, and random:hubert gives 32"):
        tiny(clusters=None, centroids=other).require()
    with pytest.raises(UserError, match=r"clusters=20 and centroids=.*: give exactly one"):
        tiny(centroids=other)


def test_runs_of_a_unit_become_one(home) -> None:
    clip = np.repeat(noise(40), 800)  # steady enough for runs
    plain, short = tiny(clusters=5), tiny(clusters=5, dedup=True)
    plain.codebook = short.codebook = learn_codebook(plain.features_of([clip])[0], 5)
    units = plain.encode([clip])[0].tolist()
    assert short.encode([clip])[0].tolist() == [u for i, u in enumerate(units) if not i or u != units[i - 1]]
    assert len(short.encode([clip])[0]) < len(units)
    assert (plain.rate_hz, short.rate_hz) == (50, None)


def test_byte_pairs_of_units_spell_the_units(home) -> None:
    clips = [np.tile(noise(3200, seed), 8) for seed in range(4)]  # with something that comes again
    encoder = tiny(bpe=40)
    assert (encoder.clusters, encoder.vocab_size, encoder.rate_hz) == (None, 40, None)
    before = encoder.fingerprint
    encoder.learned = encoder.fit(clips)
    assert encoder.fingerprint != before
    for clip, ids in zip(clips, encoder.encode(clips), strict=True):
        units = encoder.codes.assign(encoder.features_of([clip])[0])
        spelt = "".join(encoder._pairs.id_to_token(int(i)) for i in ids)
        assert [ord(c) - 0x10000 for c in spelt] == units.tolist()
        assert len(ids) < len(units)
        assert ids.max() < 40
    again = tiny(bpe=40).fit(clips)
    assert all(np.array_equal(again[name], array) for name, array in encoder.learned.items())


def test_mistakes_with_speech_models(home) -> None:
    with pytest.raises(UserError, match=r"shape \(399,\); give mono speech \(samples,\) of 400 samples or more"):
        tiny().features_of([noise(399)])
    with pytest.raises(UserError, match=r"shape \(16000, 2\); give mono"):
        tiny().features_of([np.zeros((16_000, 2), np.float32)])
    with pytest.raises(UserError, match="layer=5, and random:hubert has 4; give 1 to 4"):
        tiny(layer=5).require()
    with pytest.raises(UserError, match=r"model=random:bert is a bert; give one of wav2vec2, hubert"):
        tiny(model="random:bert", architecture={}).require()
    with pytest.raises(UserError, match="random:nothing is not known"):
        tiny(model="random:nothing", architecture={}).require()
    with pytest.raises(UserError, match="bpe=20 has to exceed clusters=20"):
        tiny(bpe=20)
    with pytest.raises(UserError, match=r"audio_ssl_kmeans: its weights \(378 MB\) are not here; run: dmlm fetch"):
        build("audio_ssl_kmeans").require()
    speech_model(home / "hubert", "hubert")
    (home / "hubert" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"lacks preprocessor_config\.json, which says how audio is scaled"):
        build("audio_ssl_kmeans", model=home / "hubert", layer=2).require()
    for written, why in {
        '{"sampling_rate": 8000}': r"is for audio of 8000 Hz \(preprocessor_config\.json\); give a model for 16000 Hz",
        '{"sampling_rate"': r"preprocessor_config\.json is damaged \(Expecting",
        "[]": r"preprocessor_config\.json is damaged",
    }.items():
        (home / "hubert" / "preprocessor_config.json").write_text(written)
        with pytest.raises(UserError, match=why):
            build("audio_ssl_kmeans", model=home / "hubert", layer=2).require()


def test_a_model_that_brings_code_is_refused_unasked(home, monkeypatch) -> None:
    speech_model(home / "own", "hubert")
    encoder = build("audio_ssl_kmeans", model=home / "own", layer=2)
    encoder.require()  # which knows the configuration as it was
    (home / "own" / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    with pytest.raises(UserError, match=r"cannot be loaded .*custom code"):
        _ = encoder.network


def test_a_folder_is_found_from_where_one_stands(home, monkeypatch) -> None:
    speech_model(home / "hubert", "hubert")
    monkeypatch.chdir(home)
    near, far = (build("audio_ssl_kmeans", model=m, layer=2) for m in ("./hubert", home / "hubert"))
    assert np.array_equal(near.features_of([noise(RATE)])[0], far.features_of([noise(RATE)])[0])


# audio_codec
