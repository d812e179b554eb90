"""What tokens are made from: the training split alone, under the noise that was asked for, by the codebook it names."""

import numpy as np
import pytest
from small_corpus import KINDS, in_this_process, small_cell, write_tones

from dmlm.corpus.condition import CLEAN, Condition
from dmlm.corpus.noise import NoiseSettings
from dmlm.corpus.noise_files import NoiseBank
from dmlm.plan.cell import Cell
from dmlm.sweep.materials import group_by_materials, prepare
from dmlm.sweep.parts import open_corpus
from dmlm.tokens.encoding import EncoderSpec
from dmlm.tokens.quantize import Codebook, learn_codebook
from dmlm.tokens.shards import TokenSource


@pytest.fixture
def noise(tmp_path, monkeypatch):
    """A noise folder, and a home beside it."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    write_tones(tmp_path / "tones")
    return tmp_path / "tones"


def with_test_split(noise, seed: int) -> Cell:
    """A cell on the corpus whose test split has this seed."""
    corpus = small_cell(noise).corpus.model_copy(update={"settings": {"test_seed": seed}})
    return small_cell(noise, corpus=corpus.model_dump())


def test_nothing_is_learned_from_the_test_split(noise, tmp_path, monkeypatch):
    made = []
    for seed in (1, 2):
        monkeypatch.setenv("DMLM_HOME", str(tmp_path / f"home {seed}"))  # so that each learns its own
        made += prepare([with_test_split(noise, seed)], run=in_this_process)
    one, other = made
    assert one.corpus.split("train") == other.corpus.split("train")
    assert [u.text for u in one.corpus.split("test")] != [u.text for u in other.corpus.split("test")]
    assert one.sources["A"].encoder.codebook.digest == other.sources["A"].encoder.codebook.digest
    assert one.text.digest == other.text.digest


def test_a_codebook_is_learned_under_the_noise_that_is_asked_for(noise):
    """In one home, one after the other: the second does not take what the first left."""
    cell = small_cell(noise)
    corpus, settings = open_corpus(cell.corpus), cell.tokenizers["A"].settings
    loud = Condition.of((-20.0,), 0, NoiseSettings(kinds=KINDS), NoiseBank.open(noise, KINDS), "train")
    clean, noisy, again = (
        TokenSource(corpus, "audio_mfcc", settings, under, in_this_process).learn() for under in (CLEAN, loud, CLEAN)
    )
    assert clean.encoder.codebook.digest == again.encoder.codebook.digest
    assert clean.encoder.codebook.digest != noisy.encoder.codebook.digest
    assert clean.fingerprint != noisy.fingerprint


def test_another_codebook_is_another_fingerprint():
    encoder = EncoderSpec("audio_mfcc", {"clusters": 8}).build()
    seen = {encoder.fingerprint}
    plain = Codebook.plain(np.eye(8, 52, dtype=np.float32))
    for book in (
        plain,
        Codebook(2 * plain.centroids, plain.mean, plain.scale),
        Codebook(plain.centroids, plain.mean + 1, plain.scale),
    ):
        encoder.codebook = book
        seen.add(encoder.fingerprint)
    assert len(seen) == 4


def test_a_frame_gets_the_centroid_that_is_nearest_in_normalised_space():
    """By brute force, on features whose means and scales differ and are far from 0 and 1."""
    rng = np.random.default_rng(0)
    frames = (rng.standard_normal((400, 3)) * (0.1, 5.0, 40.0) + (30.0, -200.0, 7.0)).astype(np.float32)
    book = learn_codebook(frames, 6)
    mean, deviation = frames.astype(float).mean(axis=0), frames.astype(float).std(axis=0)
    normalised = (frames - mean) / deviation
    nearest = [int(np.argmin([np.sum((x - c) ** 2) for c in book.centroids])) for x in normalised]
    assert (book.assign(frames) == nearest).mean() > 0.99
    assert set(nearest) == set(range(6))


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"noise": {"placement": "whole"}}, 2),
        ({"noise": {"seed": 1}}, 2),
        ({"snr_db": {"train": ["clean"], "test": ["clean"]}}, 2),
        ({"snr_db": {"train": [0, -20], "test": [0]}}, 2),
        ({"tokenizers": {"A": {"recipe": "audio_mfcc", "settings": {"clusters": 9}}}}, 2),
        ({"text": {"vocab_size": 290}}, 2),
        ({"split": "val"}, 2),
        ({"seed": 1}, 1),
        ({"backbone": "mamba-nano"}, 1),
    ],
)
def test_cells_share_materials_only_where_these_are_the_same(changes, count, tmp_path):
    plain = small_cell(tmp_path)
    if "noise" in changes:
        changes = {"noise": plain.noise.model_dump() | changes["noise"]}
    assert len(group_by_materials([plain, small_cell(tmp_path, **changes)])) == count


def test_every_cell_gets_the_noise_that_it_names(noise):
    plain = small_cell(noise, snr_db={"train": [0, -20], "test": [0]})
    whole = plain.model_copy(update={"noise": plain.noise.model_copy(update={"placement": "whole"})})
    heard = []
    for cell, materials in zip((plain, whole), prepare([plain, whole], run=in_this_process), strict=True):
        conditions = [*materials.train_conditions, *materials.test_conditions.values()]
        assert {condition.noise for condition in conditions} == {cell.noise}
        items, _ = materials.streams(("A",), "test", materials.test_conditions[0.0])
        heard.append([item["A"].tolist() for item in items])
    assert heard[0] != heard[1]
