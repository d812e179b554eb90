"""The token cache: what is in a shard is what its name says, and one failing tokenizer costs only the cells that need it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from dmlm.corpus.condition import CLEAN
from dmlm.corpus.manifest import Corpus, read_corpus, write_corpus
from dmlm.errors import UserError
from dmlm.plan.grid import read_grid_file
from dmlm.sweep.materials import drop_failed, prepare
from dmlm.tokens import encoding
from dmlm.tokens.shards import TokenSource

LENGTH = """
import numpy as np
from dmlm.tokens.encoder import Tokenizer

class Length(Tokenizer):
    modality, media, vocab_size, rate_hz = "L", "lips", 1000, 25.0

    def encode(self, batch):
        return [np.full(len(item), len(item)) for item in batch]
"""


@pytest.fixture
def corpus(finished, home, tmp_path, monkeypatch) -> Corpus:
    """That of the smoke grid, in a home of its own."""
    monkeypatch.setenv("DMLM_HOME", str(tmp_path / "home"))
    (folder,) = (home / "corpora").glob("*-smoke-*")
    shutil.copytree(home / "corpora", tmp_path / "home" / "corpora")
    shutil.copytree(home / "noise", tmp_path / "home" / "noise")
    return read_corpus(tmp_path / "home" / "corpora" / folder.name)


def in_this_process(function, jobs):
    return map(function, jobs)


def source(corpus: Corpus, recipe: str) -> TokenSource:
    return TokenSource(corpus, recipe, {}, CLEAN, in_this_process)


def test_fewer_utterances_have_the_tokens_that_they_had(corpus, tmp_path) -> None:
    recipe = tmp_path / "lips_length.py"
    recipe.write_text(LENGTH)
    before = source(corpus, str(recipe)).load("test", CLEAN).tokens
    fewer = replace(corpus, utterances=tuple(u for u in corpus.utterances if u.id != next(iter(before))))
    after = TokenSource(fewer, str(recipe), {}, CLEAN, run=None).load("test", CLEAN).tokens  # nothing is encoded
    assert list(after) == list(before)[1:]
    assert all(np.array_equal(tokens, before[name]) for name, tokens in after.items())


def test_a_recipe_is_known_by_the_source_that_runs(corpus, tmp_path) -> None:
    recipe = tmp_path / "lips_edited.py"
    recipe.write_text(LENGTH)
    used = source(corpus, str(recipe))
    fingerprint = used.encoder.fingerprint
    recipe.write_text(LENGTH.replace("np.full", "np.ones_like"))
    assert used.encoder.fingerprint == fingerprint
    assert used.fingerprint == fingerprint


def test_a_worker_with_another_version_of_a_recipe_writes_nothing(corpus, tmp_path) -> None:
    from dmlm.tokens.encoding import EncodingJob, encode_shard

    recipe = tmp_path / "lips_other.py"
    recipe.write_text(LENGTH)
    used = source(corpus, str(recipe))
    job = EncodingJob(used.spec, "another", corpus.folder, [], CLEAN, tmp_path / "shard.safetensors")
    with pytest.raises(UserError, match="was changed while it was in use; run the same command again"):
        encode_shard(job)
    assert not job.target.exists()


def test_one_failing_tokenizer_costs_only_the_cells_that_need_it(corpus, tmp_path) -> None:
    recipe = tmp_path / "lips_broken.py"
    recipe.write_text(LENGTH.replace("return [", "raise RuntimeError('no lips today')\n        return ["))
    grid = read_grid_file("smoke", [f"tokenizers.L={recipe}", "tokenizers.O=ocr_oracle"])
    failed: dict[int, Exception] = {}
    materials = prepare(grid.cells, run=in_this_process, failed=failed)
    assert {grid.cells[number].template for number in failed} == {"A+L -> T"}
    rest, lines = drop_failed(grid, failed)
    assert [cell.template for cell in rest.cells] == [c.template for c in grid.cells if "L" not in c.letters]
    assert len(materials) == len(rest.cells)
    assert all(line.endswith("RuntimeError: no lips today") for line in lines)
    assert len(lines) == len(failed)
    with pytest.raises(RuntimeError, match="no lips today"):
        prepare(grid.cells, run=in_this_process)


PROMISES = """
import numpy as np
from dmlm.tokens.encoder import Tokenizer

class Broken(Tokenizer):
    modality, media, vocab_size, rate_hz = "L", "lips", 1000, 25.0

    def encode(self, batch):
        return [RESULT for item in batch]
"""


@pytest.mark.parametrize(
    ("result", "error", "complaint"),
    [
        ("np.full(len(item), 1.5)", UserError, "an array of float64 of shape"),
        ("np.zeros((len(item), 2), int)", UserError, "of shape .* instead of whole numbers in a row"),
        ("np.zeros(len(item) // 2, int)", UserError, "IDs where its rate of 25 a second promises"),
        ("np.zeros(0, int)", UserError, "no ID or one outside"),
        (
            "itme",
            RuntimeError,
            "tokenizer lips_broken, line 9 of its file, one of 16 utterances, the first 'test-00000'",
        ),
    ],
)
def test_a_recipe_is_held_to_what_it_promises(corpus, tmp_path, result, error, complaint) -> None:
    recipe = tmp_path / "lips_broken.py"
    recipe.write_text(PROMISES.replace("RESULT", result))
    with pytest.raises(error, match=complaint):
        source(corpus, str(recipe)).load("test", CLEAN)


def test_the_medium_of_a_recipe_is_one_of_the_manifest(corpus, tmp_path) -> None:
    recipe = tmp_path / "lips_film.py"
    recipe.write_text(LENGTH.replace('"lips", 1000', '"film", 1000'))
    with pytest.raises(UserError, match="media='film'; choose one of audio, lips, image, ocr"):
        source(corpus, str(recipe))


def test_clips_too_large_for_one_group_give_the_same_shard(corpus, tmp_path, monkeypatch) -> None:
    recipe = tmp_path / "lips_length.py"
    recipe.write_text(LENGTH.replace("return [", "assert len(batch) <= LIMIT\n        return [").replace("LIMIT", "16"))
    together = source(corpus, str(recipe)).load("test", CLEAN).tokens
    recipe.write_text(LENGTH.replace("return [", "assert len(batch) <= LIMIT\n        return [").replace("LIMIT", "1"))
    monkeypatch.setattr(encoding, "GROUP_BYTES", 1000)
    apart = source(corpus, str(recipe)).load("test", CLEAN).tokens
    assert list(apart) == list(together)
    assert all(np.array_equal(tokens, together[name]) for name, tokens in apart.items())


def test_audio_that_is_too_short_is_named(corpus) -> None:
    first = corpus.split("test")[0]
    soundfile.write(corpus.media(first, "audio"), np.zeros(700, np.float32), 16000)
    corpus = write_corpus(corpus.folder, corpus.utterances, corpus.card)
    with pytest.raises(UserError, match=r"has 700 samples; utterance 'test-00000' needs 0\.05 s at least"):
        source(corpus, "audio_mfcc").learn().load("test", CLEAN)


def test_a_recording_that_changes_while_it_is_in_use_is_never_cached(corpus, tmp_path) -> None:
    """Its tokens would stand under the digest of the one that was checked, for every corpus that holds it."""
    used = source(corpus, "audio_mfcc").learn()
    first = corpus.split("test")[0]
    path = corpus.media(first, "audio")
    content = path.read_bytes()
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16000), 16000)
    with pytest.raises(UserError, match=r"test-00000\.flac changed while it was in use; run the same command again"):
        used.load("test", CLEAN)
    path.write_bytes(content)
    with pytest.raises(AssertionError, match="encoded"):
        TokenSource(corpus, "audio_mfcc", {}, CLEAN, _encodes_nothing).learn().load("test", CLEAN)


def _encodes_nothing(function, jobs):
    raise AssertionError("encoded")
