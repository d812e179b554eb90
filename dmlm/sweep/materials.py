"""What every cell of a grid shares: corpus, noise, tokenizers, text vocabulary, and their tokens, made once."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dmlm import paths, processes, recipes
from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Corpus, read_corpus
from dmlm.corpus.noise import NoiseBank, NoiseSettings
from dmlm.engines.lease import Leases
from dmlm.errors import UserError, did_you_mean
from dmlm.model import pretrained
from dmlm.plan.cell import Cell, CorpusChoice, TextSettings, TokenizerChoice, validated
from dmlm.plan.grid import Grid
from dmlm.plan.identity import identity
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.shards import Map, TokenSource
from dmlm.tokens.vocabulary import TextVocabulary, Vocabulary
from dmlm.training.loggers import check_installed


@dataclass
class Materials:
    """Opened or made; nothing here knows about models."""

    corpus: Corpus
    sources: dict[str, TokenSource]  # by modality letter
    text: TextVocabulary
    train_conditions: list[Condition]  # one per draw
    test_conditions: dict[float, Condition]  # by SNR in dB

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        return {letter: source.fingerprint for letter, source in self.sources.items()}

    @property
    def rates_hz(self) -> dict[str, float | None]:
        return {k: s.encoder.rate_hz for k, s in self.sources.items() if isinstance(s.encoder, Tokenizer)}

    def learned(self, cell: Cell) -> dict[str, Path]:
        """Files that were learned for a cell's tokenizers, by a name such as `A-codebook`."""
        return {
            f"{letter}-{part}": path
            for letter in cell.letters
            for part, path in self.sources[letter].learned_files.items()
        }

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
        return items, encoded["A"].snr_db_measured if "A" in encoded else {}


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
    key = identity({"settings": settings.model_dump(mode="json"), "recipe": recipes.digest(recipe.__name__)}, 8)
    return paths.home() / "corpora" / f"{Path(choice.recipe).stem}-{choice.preset}-{key}", recipe, settings


def open_corpus(choice: CorpusChoice) -> Corpus:
    """The corpus, made first if it is not there; an interrupted preparation goes on where it was."""
    folder, recipe, settings = corpus_folder(choice)
    return read_corpus(folder) if (folder / "corpus.json").is_file() else recipe.prepare(settings, folder)


def open_bank(noise: NoiseSettings) -> NoiseBank:
    """The noise files: the built-in bank, made on first use, or the user's folder."""
    if noise.set != "builtin":
        folder = Path(noise.set).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(
                f"noise.set: there is no folder {folder}; give `builtin` or a folder with one sub-folder per kind."
            )
    else:
        from dmlm.synthesis.bank import build_bank

        folder = paths.noise_bank()
        if not (folder / "bank.json").is_file():
            build_bank(folder)
    return NoiseBank.open(folder, noise.kinds)


def text_path(corpus: Corpus, settings: TextSettings) -> Path:
    """Where the BPE vocabulary of a corpus is kept."""
    name = pretrained.digest(settings.tokenizer)[:8] if settings.tokenizer else f"bpe{settings.vocab_size}"
    return paths.home() / "tokens" / corpus.label / f"text-{name}.json"


def open_text(corpus: Corpus, settings: TextSettings) -> TextVocabulary:
    """The BPE vocabulary of a corpus: learned on its training transcripts on first use, or a pretrained model's."""
    path = text_path(corpus, settings)
    if not path.is_file():
        if settings.tokenizer:
            TextVocabulary.of_model(pretrained.folder(settings.tokenizer)).save(path)
        else:
            TextVocabulary.learn((u.text for u in corpus.split("train")), settings.vocab_size).save(path)
    return TextVocabulary.load(path)


def conditions(cell: Cell, draws: int) -> tuple[list[Condition], dict[float, Condition]]:
    """Training draws and test levels of a cell."""
    bank = open_bank(cell.noise)
    return (
        [Condition.of(cell.snr_db.train, draw, cell.noise, bank) for draw in range(draws)],
        {snr_db: Condition.of((snr_db,), 0, cell.noise, bank) for snr_db in cell.snr_db.test},
    )


def check(cells: Sequence[Cell]) -> None:
    """Refuse what `check_plain` refuses, and tokenizers that lack a package or weights, before any work is done.

    Raises:
        UserError: one sentence.
    """
    check_plain(cells)
    if needs := lacking(cells):
        raise UserError(needs[0])


def lacking(cells: Sequence[Cell]) -> list[str]:
    """What the cells' tokenizers need and this machine lacks, each in a sentence with the command that brings it."""
    choices = {f"{k} {c.tokenizers[k].model_dump_json()}": (k, c.tokenizers[k]) for c in cells for k in c.letters}
    found: dict[str, None] = {}
    for letter, choice in choices.values():
        try:
            TokenSource.check(letter, choice.recipe, choice.settings).require()
        except UserError as error:
            found[str(error)] = None
    return list(found)


def check_plain(cells: Sequence[Cell]) -> None:
    """Refuse a wrong corpus, tokenizer or noise folder.

    Raises:
        UserError: one sentence.
    """
    check_installed(list(dict.fromkeys(name for cell in cells for name in cell.execution.loggers)))
    for group in groups(cells):
        first = cells[group[0]]
        corpus_folder(first.corpus)
        for name in {cells[n].backbone for n in group if pretrained.is_named(cells[n].backbone)}:
            pretrained.digest(name)
        for letter in dict.fromkeys(letter for n in group for letter in cells[n].letters):
            choice = first.tokenizers[letter]
            TokenSource.check(letter, choice.recipe, choice.settings)
        if first.noise.set != "builtin":
            open_bank(first.noise)


def groups(cells: Sequence[Cell]) -> list[list[int]]:
    """Numbers of the cells that share corpus, tokenizers, text, noise and levels: they share their materials."""
    found: dict[str, list[int]] = {}
    for number, cell in enumerate(cells):
        found.setdefault(shared(cell), []).append(number)
    return list(found.values())


def shared(cell: Cell) -> str:
    """What cells must have in common to share materials."""
    return cell.model_dump_json(include={"corpus", "tokenizers", "text", "noise", "snr_db", "split"})


@dataclass
class _Opened:
    """What was opened already, so that groups of cells share it."""

    run: Map
    corpora: dict[Path, Corpus] = field(default_factory=dict)
    sources: dict[tuple[str, str, str], TokenSource] = field(default_factory=dict)
    ready: set[tuple[int, str, str]] = field(default_factory=set)

    def corpus(self, choice: CorpusChoice) -> Corpus:
        folder = corpus_folder(choice)[0]
        if folder not in self.corpora:
            self.corpora[folder] = open_corpus(choice)
        return self.corpora[folder]

    def source(self, corpus: Corpus, choice: TokenizerChoice, learn_under: Condition, device: str) -> TokenSource:
        key = corpus.label, choice.model_dump_json(), learn_under.key
        if key not in self.sources:
            self.sources[key] = TokenSource(corpus, choice.recipe, choice.settings, learn_under, self.run, device)
        return self.sources[key]

    def encode(self, source: TokenSource, split: str, condition: Condition) -> None:
        key = id(source), split, condition.key
        if key not in self.ready:
            self.ready.add(key)
            source.prepare(split, condition)


def prepare(
    cells: Sequence[Cell],
    say: Callable[[str], None] = lambda line: None,
    run: Map = processes.run,
    failed: dict[int, Exception] | None = None,
) -> list[Materials]:
    """For each cell everything up to its tokens, each part made once and then found again.

    Where `failed` is given, a tokenizer that fails costs only the cells that need it: they are put there, by number, and
    the materials of the others come back in order.
    """
    opened, prepared = _Opened(run), []
    found: dict[int, Materials] = {}
    for group in groups(cells):
        first = cells[group[0]]
        corpus = opened.corpus(first.corpus)
        train, test = conditions(first, max(cells[n].train.draws for n in group))
        sources = {}
        for letter in dict.fromkeys(letter for n in group for letter in cells[n].letters):
            choice, where = first.tokenizers[letter], first.execution.token_device
            try:
                source = opened.source(corpus, choice, train[0], where).learn()
                for split, wanted in (("train", train), (first.split, list(test.values()))):
                    for condition in dict.fromkeys(map(source.condition_for, wanted)):
                        opened.encode(source, split, condition)
                sources[letter] = source
            except OSError:  # the disk, which every cell needs
                raise
            except Exception as error:
                if failed is None:
                    raise
                failed |= {number: error for number in group if letter in cells[number].letters}
        whole = [number for number in group if number not in (failed or ())]
        found |= dict.fromkeys(whole, Materials(corpus, sources, open_text(corpus, first.text), train, test))
        prepared.append((corpus, sources))
    for corpus in opened.corpora.values():
        sizes = ", ".join(f"{count} {split}" for split, count in corpus.card["utterances"].items())
        say(f"corpus   {corpus.folder}  ({sizes})")
        names = {f"{letter} {s.name}": None for c, sources in prepared if c is corpus for letter, s in sources.items()}
        say(f"tokens   {paths.home() / 'tokens' / corpus.label}  ({', '.join(names)})")
    return [found[number] for number in range(len(cells)) if number in found]


def prepare_alone(
    cells: Sequence[Cell],
    say: Callable[[str], None],
    run: Map = processes.run,
    failed: dict[int, Exception] | None = None,
) -> list[Materials]:
    """The same, while no other driver on this folder does so."""
    with Leases().hold_when_free(paths.home() / "prepare.lease", say):
        return prepare(cells, say, run, failed)


def without(grid: Grid, failed: dict[int, Exception]) -> tuple[Grid, list[str]]:
    """A grid less the cells that could not be prepared, and a line about each of those.

    Raises:
        Exception: what stopped them, if none is left.
    """
    if len(failed) == len(grid.cells):
        raise next(iter(failed.values()))
    for error in dict.fromkeys(failed.values()):
        if not isinstance(error, UserError):
            traceback.print_exception(error)  # of a recipe: whoever wrote it needs to know where
    kept = [number for number in range(len(grid.cells)) if number not in failed]
    lines = []
    for number, error in failed.items():
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        lines.append(f"{grid.cells[number].label} {grid.variants[number]}".rstrip() + f": {why}")
    cells, variants = zip(*((grid.cells[number], grid.variants[number]) for number in kept), strict=True)
    return replace(grid, cells=cells, variants=variants), lines


def look(cells: Sequence[Cell]) -> dict[int, Materials]:
    """What `prepare` made before, by number of the cell, without making anything; a cell that lacks a part is left out."""
    found: dict[int, Materials] = {}
    bank = paths.noise_bank() / "bank.json"
    corpora: dict[Path, Corpus] = {}
    for group in groups(cells):
        first = cells[group[0]]
        folder, _, _ = corpus_folder(first.corpus)
        if not (folder / "corpus.json").is_file() or (first.noise.set == "builtin" and not bank.is_file()):
            continue
        corpus = corpora[folder] = corpora.get(folder) or read_corpus(folder)
        if not text_path(corpus, first.text).is_file():
            continue
        train, test = conditions(first, max(cells[n].train.draws for n in group))
        letters = dict.fromkeys(letter for n in group for letter in cells[n].letters)
        sources = {}
        for letter in letters:
            choice = first.tokenizers[letter]
            sources[letter] = TokenSource(corpus, choice.recipe, choice.settings, train[0])
        if all(source.is_learned for source in sources.values()):
            ready = {letter: source.learn() for letter, source in sources.items()}
            found |= dict.fromkeys(group, Materials(corpus, ready, open_text(corpus, first.text), train, test))
    return found


def clips_to_encode(cells: Sequence[Cell], found: dict[int, Materials]) -> int | None:
    """Clips that are not in the token cache yet, once for each tokenizer and condition; None where nobody knows."""
    if len(found) < len(cells):
        return None
    missing: dict[tuple[str, str, str], int] = {}
    for number, cell in enumerate(cells):
        materials = found[number]
        for letter in cell.letters:
            source = materials.sources[letter]
            for split, wanted in (
                ("train", materials.train_conditions),
                (cell.split, materials.test_conditions.values()),
            ):
                for condition in dict.fromkeys(map(source.condition_for, wanted)):
                    key = f"{source.corpus.label} {source.name}", split, condition.key
                    if key not in missing:
                        missing[key] = source.count_missing(split, condition)
    return sum(missing.values())
