"""What every cell of a grid shares: corpus, noise, tokenizers, text vocabulary, and their tokens, made once."""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmlm import places, recipes
from dmlm.corpus.condition import CLEAN, Condition
from dmlm.corpus.manifest import Corpus, read_corpus
from dmlm.corpus.noise import NoiseBank
from dmlm.errors import UserError, did_you_mean
from dmlm.model import pretrained
from dmlm.sweep.grid import CorpusChoice, Grid, TextSettings, validated
from dmlm.sweep.identity import identity
from dmlm.tokens.shards import TokenSource
from dmlm.tokens.tokenizer import Tokenizer
from dmlm.tokens.vocabulary import TextVocabulary, Vocabulary


@dataclass
class Materials:
    """Opened or made; nothing here knows about models."""

    corpus: Corpus
    sources: dict[str, TokenSource]  # by modality letter
    text: TextVocabulary
    train_conditions: list[Condition]  # one per draw
    test_conditions: dict[float, Condition]  # by SNR in dB

    @property
    def fingerprints(self) -> dict[str, str]:
        return {letter: source.encoder.fingerprint for letter, source in self.sources.items()}

    @property
    def rates_hz(self) -> dict[str, float | None]:
        return {k: s.encoder.rate_hz for k, s in self.sources.items() if isinstance(s.encoder, Tokenizer)}

    def vocabulary(self, letters: tuple[str, ...]) -> Vocabulary:
        """The ID space of a model with these input modalities."""
        encoders = {letter: self.sources[letter].encoder for letter in letters}
        return Vocabulary(self.text.size, {k: e.vocab_size for k, e in encoders.items() if isinstance(e, Tokenizer)})

    def streams(
        self, letters: tuple[str, ...], split: str, condition: Condition
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Token streams of every utterance of a split, in manifest order, and the SNR measured on each."""
        encoded = {letter: self.sources[letter].load(split, condition) for letter in letters}
        items = []
        for utterance in self.corpus.split(split):
            item = {letter: tokens.tokens[utterance.id] for letter, tokens in encoded.items()}
            items.append(
                {k: self.text.encode(v) if isinstance(v, str) else v for k, v in item.items()}
                | {"T": self.text.encode(utterance.text)}
            )
        return items, encoded["A"].snr_db if "A" in encoded else {}


def corpus_folder(choice: CorpusChoice) -> tuple[Path, Any, Any]:
    """Where a corpus of these settings lives, its recipe and its settings.

    Raises:
        UserError: unknown recipe, preset or setting.
    """
    recipe = recipes.load("datasets", choice.recipe)
    if choice.preset not in recipe.PRESETS:
        raise UserError(
            f"Corpus {choice.recipe} has no preset {choice.preset!r}; {did_you_mean(choice.preset, recipe.PRESETS)}."
        )
    values = recipe.PRESETS[choice.preset].model_dump() | choice.settings
    settings = validated(recipe.Settings, values, f"corpus.settings of {choice.recipe}")
    source = hashlib.sha256(Path(str(recipe.__file__)).read_bytes()).hexdigest()
    key = identity({"settings": settings.model_dump(mode="json"), "recipe": source}, 8)
    return places.home() / "corpora" / f"{Path(choice.recipe).stem}-{choice.preset}-{key}", recipe, settings


def open_corpus(choice: CorpusChoice) -> Corpus:
    """The corpus, made first if it is not there; an interrupted preparation goes on where it was."""
    folder, recipe, settings = corpus_folder(choice)
    return read_corpus(folder) if (folder / "corpus.json").is_file() else recipe.prepare(settings, folder)


def open_bank(grid: Grid) -> tuple[Path, NoiseBank]:
    """The noise files: the built-in bank, made on first use, or the user's folder."""
    if grid.noise.set != "builtin":
        folder = Path(grid.noise.set).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(
                f"noise.set: there is no folder {folder}; give `builtin` or a folder with one sub-folder per kind."
            )
    else:
        from dmlm.corpus.synthesis.bank import build_bank

        folder = places.home() / "noise" / "builtin"
        if not (folder / "bank.json").is_file():
            build_bank(folder)
    return folder, NoiseBank.open(folder, grid.noise.kinds)


def text_path(corpus: Corpus, settings: TextSettings) -> Path:
    """Where the BPE vocabulary of a corpus is kept."""
    name = pretrained.digest(settings.tokenizer)[:8] if settings.tokenizer else f"bpe{settings.vocab_size}"
    return places.home() / "tokens" / corpus.label / f"text-{name}.json"


def open_text(corpus: Corpus, settings: TextSettings) -> TextVocabulary:
    """The BPE vocabulary of a corpus: learned on its training transcripts on first use, or a pretrained model's."""
    path = text_path(corpus, settings)
    if not path.is_file():
        if settings.tokenizer:
            TextVocabulary.of_model(pretrained.folder(settings.tokenizer)).save(path)
        else:
            TextVocabulary.learn((u.text for u in corpus.split("train")), settings.vocab_size).save(path)
    return TextVocabulary.load(path)


def conditions(grid: Grid, draws: int) -> tuple[list[Condition], dict[float, Condition]]:
    """Training draws and test levels of a grid."""
    folder, bank = open_bank(grid)

    def condition(levels: tuple[float, ...], draw: int = 0) -> Condition:
        return CLEAN if levels == (math.inf,) else Condition(levels, draw, grid.noise, folder, bank.digest)

    return (
        [condition(grid.snr_db.train, draw) for draw in range(draws)],
        {level: condition((level,)) for level in grid.snr_db.test},
    )


def sources_of(grid: Grid, corpus: Corpus, letters: Iterable[str], learn_under: Condition) -> dict[str, TokenSource]:
    """One token source per modality."""
    chosen = {letter: grid.tokenizers[letter] for letter in letters}
    return {k: TokenSource(corpus, choice.recipe, choice.settings, learn_under) for k, choice in chosen.items()}


def check(grid: Grid) -> None:
    """Refuse a wrong corpus, tokenizer or noise folder before any work is done.

    Raises:
        UserError: one sentence.
    """
    corpus_folder(grid.corpus)
    for name in {cell.backbone for cell in grid.cells if pretrained.is_named(cell.backbone)}:
        pretrained.digest(name)
    for letter, choice in grid.tokenizers.items():
        TokenSource.check(letter, choice.recipe, choice.settings)
    if grid.noise.set != "builtin":
        open_bank(grid)


def prepare(grid: Grid, say: Callable[[str], None], letters: Iterable[str] | None = None) -> Materials:
    """Everything up to tokens, each part made once and then found again; for all modalities of the grid, or some."""
    if letters is None:
        check(grid)
    corpus = open_corpus(grid.corpus)
    say(f"corpus   {corpus.folder}  ({', '.join(f'{n} {split}' for split, n in corpus.card['utterances'].items())})")
    train, test = conditions(grid, max(cell.train.draws for cell in grid.cells))
    sources = sources_of(grid, corpus, grid.letters() if letters is None else letters, train[0])
    for source in sources.values():
        source.ready()
        for split, wanted in (("train", train), ("test", list(test.values()))):
            for condition in wanted if source.encoder.media == "audio" else [CLEAN]:
                source.prepare(split, condition)
    names = ", ".join(f"{letter} {source.name}" for letter, source in sources.items())
    say(f"tokens   {places.home() / 'tokens' / corpus.label}  ({names})")
    return Materials(corpus, sources, open_text(corpus, grid.text), train, test)


def look(grid: Grid) -> Materials | None:
    """What `prepare` made before, without making anything; None where a part is missing."""
    folder, _, _ = corpus_folder(grid.corpus)
    bank = places.home() / "noise" / "builtin" / "bank.json"
    if not (folder / "corpus.json").is_file() or (grid.noise.set == "builtin" and not bank.is_file()):
        return None
    corpus = read_corpus(folder)
    if not text_path(corpus, grid.text).is_file():
        return None
    train, test = conditions(grid, max(cell.train.draws for cell in grid.cells))
    sources = sources_of(grid, corpus, grid.letters(), train[0])
    if not all(source.learned for source in sources.values()):
        return None
    for source in sources.values():
        source.ready()
    return Materials(corpus, sources, open_text(corpus, grid.text), train, test)
