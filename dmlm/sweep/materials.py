"""Materials: everything a cell needs before a model: corpus, noise conditions, token sources and text vocabulary.

Cells with equal settings share their materials, and each part is made once.
"""

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from dmlm import paths, processes
from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Corpus
from dmlm.errors import UserError
from dmlm.known_files import digest_of
from dmlm.modalities import TARGET
from dmlm.plan.cell import Cell, CorpusChoice, TokenizerChoice
from dmlm.plan.grid import Grid
from dmlm.processes import Map
from dmlm.sweep.parts import conditions, corpus_folder, has_builtin_bank, open_corpus, open_text, text_path
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.shards import TokenSource
from dmlm.tokens.vocabulary import TextVocabulary, Vocabulary


@dataclass
class Materials:
    """The data of one or more cells; independent of models."""

    corpus: Corpus
    sources: dict[str, TokenSource]  # by modality letter
    text: TextVocabulary
    train_conditions: list[Condition]  # one per noise draw
    test_conditions: dict[float, Condition]  # by SNR in dB

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each encoder, by letter."""
        return {letter: source.fingerprint for letter, source in self.sources.items()}

    @property
    def rates_hz(self) -> dict[str, float | None]:
        """Token rate of each tokenizer, by letter; None where the modality has no clock."""
        return {k: s.encoder.rate_hz for k, s in self.sources.items() if isinstance(s.encoder, Tokenizer)}

    def learned(self, cell: Cell) -> dict[str, Path]:
        """Return the files that a cell's tokenizers learned, by a name such as `A-codebook`."""
        return {
            f"{letter}-{part}": path
            for letter in cell.letters
            for part, path in self.sources[letter].learned_files.items()
        }

    def vocabulary(self, letters: tuple[str, ...]) -> Vocabulary:
        """Return the ID space of a model with these input modalities."""
        encoders = {letter: self.sources[letter].encoder for letter in letters}
        return Vocabulary(self.text.size, {k: e.vocab_size for k, e in encoders.items() if isinstance(e, Tokenizer)})

    def streams(
        self, letters: tuple[str, ...], split: str, condition: Condition
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Load the tokens of a split under a condition.

        Returns:
            One dict per utterance in manifest order, with the IDs (T,) of each input modality and of the transcript
            (`T`); and the SNR in dB measured on each utterance, by its id: empty without audio.
        """
        encoded = {letter: self.sources[letter].load(split, condition) for letter in letters}
        items = []
        for utterance in self.corpus.split(split):
            item = {letter: tokens.tokens[utterance.id] for letter, tokens in encoded.items()}
            items.append(
                {k: self.text.encode(v) if isinstance(v, str) else v for k, v in item.items()}
                | {"T": self.text.encode(utterance.text)}
            )
        return items, encoded["A"].snr_db_measured if "A" in encoded else {}

    def content(self, letters: Sequence[str], split: str, conditions: Sequence[Condition]) -> dict[str, str]:
        """Return digests of what a model reads of a split under these conditions: by letter, and of the transcripts (`T`)."""
        digests = {k: digest_of(self.sources[k].content(split, condition) for condition in conditions) for k in letters}
        return digests | {TARGET: digest_of(utterance.text for utterance in self.corpus.split(split))}

    def tested(self, letters: Sequence[str], split: str, condition: Condition) -> str:
        """Return a digest of what a test reads and what its records name: content, transcripts, ids and speakers."""
        content = self.content(letters, split, [condition]).values()
        return digest_of([*content, *(f"{u.id}\t{u.speaker}" for u in self.corpus.split(split))])


def group_by_materials(cells: Sequence[Cell]) -> list[list[int]]:
    """Group the indices of cells that have equal corpus, tokenizers, text, noise and SNRs: they share their materials."""
    groups: dict[str, list[int]] = {}
    for index, cell in enumerate(cells):
        groups.setdefault(materials_key(cell), []).append(index)
    return list(groups.values())


def materials_key(cell: Cell) -> str:
    """Return the settings that materials depend on, as JSON; cells with equal keys share materials."""
    return cell.model_dump_json(include={"corpus", "tokenizers", "text", "noise", "snr_db", "split"})


def letters_of(cells: Sequence[Cell], indices: Sequence[int]) -> list[str]:
    """Return the input modalities of the cells at these indices, each once."""
    return list(dict.fromkeys(letter for index in indices for letter in cells[index].letters))


def fold_key(choice: CorpusChoice) -> str:
    """Return a key of a corpus, and of which fold of it is tested."""
    return f"{corpus_folder(choice)[0]} {choice.fold}"


def corpus_key(choice: CorpusChoice) -> str:
    """Return a key of a corpus, of which fold of it is tested, and of what is left out of it."""
    return f"{fold_key(choice)} {digest_of(sorted(choice.left_out))}"


@dataclass
class _Opened:
    """Corpora and token sources that are open, and the splits that are encoded, so that groups of cells share them."""

    run: Map
    corpora: dict[str, Corpus] = field(default_factory=dict)  # by `corpus_key`
    sources: dict[tuple[int, str, str], TokenSource] = field(default_factory=dict)
    encoded: set[tuple[int, str, str]] = field(default_factory=set)  # id of a source, split, key of a condition

    def corpus(self, choice: CorpusChoice) -> Corpus:
        key = corpus_key(choice)
        if key not in self.corpora:
            self.corpora[key] = open_corpus(choice)
        return self.corpora[key]

    def source(self, corpus: Corpus, choice: TokenizerChoice, learn_under: Condition, device: str) -> TokenSource:
        key = id(corpus), choice.model_dump_json(), learn_under.key
        if key not in self.sources:
            self.sources[key] = TokenSource(corpus, choice.recipe, choice.settings, learn_under, self.run, device)
        return self.sources[key]

    def encode(self, source: TokenSource, split: str, conditions: Sequence[Condition]) -> None:
        for condition in dict.fromkeys(map(source.condition_for, conditions)):
            key = id(source), split, condition.key
            if key not in self.encoded:
                self.encoded.add(key)
                source.prepare(split, condition)


def prepare(
    cells: Sequence[Cell],
    say: Callable[[str], None] = lambda line: None,
    run: Map = processes.run,
    failed: dict[int, Exception] | None = None,
) -> list[Materials]:
    """Make the materials of every cell, up to its tokens; parts that exist already are reused.

    Args:
        failed: if given, a tokenizer that fails affects only the cells that need it: their errors are added here by
            index. Otherwise the first error is raised.

    Returns:
        The materials of the cells that did not fail, in order.
    """
    opened = _Opened(run)
    sources_of_groups: list[tuple[Corpus, dict[str, TokenSource]]] = []
    materials: dict[int, Materials] = {}
    for indices in group_by_materials(cells):
        first = cells[indices[0]]
        corpus = opened.corpus(first.corpus)
        train, test = conditions(first, max(cells[n].train.draws for n in indices))
        sources = {}
        for letter in letters_of(cells, indices):
            choice, device = first.tokenizers[letter], first.execution.token_device
            try:
                source = opened.source(corpus, choice, train[0], device).learn()
                opened.encode(source, "train", train)
                opened.encode(source, first.split, list(test.values()))
                sources[letter] = source
            except OSError:  # a problem of the disk, which every cell needs
                raise
            except Exception as error:
                if failed is None:
                    raise
                failed |= {n: error for n in indices if letter in cells[n].letters}
        prepared = [n for n in indices if n not in (failed or ())]
        materials |= dict.fromkeys(prepared, Materials(corpus, sources, open_text(corpus, first.text), train, test))
        sources_of_groups.append((corpus, sources))
    for corpus in opened.corpora.values():
        sizes = ", ".join(f"{count:,} {split}" for split, count in corpus.counts.items())
        lacking = ", ".join(f"{count:,} {rule}" for rule, count in corpus.card.get("not_imported", {}).items())
        say(f"corpus   {corpus.folder}  ({sizes}{f'; not imported: {lacking}' if lacking else ''})")
        names = {
            f"{k} {s.name}": None for other, sources in sources_of_groups if other is corpus for k, s in sources.items()
        }
        say(f"tokens   {paths.home() / 'tokens'}  ({', '.join(names)})")
    return [materials[n] for n in range(len(cells)) if n in materials]


def drop_failed(grid: Grid, failed: dict[int, Exception]) -> tuple[Grid, list[str]]:
    """Remove the cells that could not be prepared from a grid.

    Args:
        failed: the error of each of those cells, by index.

    Returns:
        The remaining grid, and a line about each removed cell.

    Raises:
        Exception: the first error, if no cell is left.
    """
    if len(failed) == len(grid.cells):
        raise next(iter(failed.values()))
    for error in dict.fromkeys(failed.values()):
        if not isinstance(error, UserError):
            traceback.print_exception(error)  # a bug in a recipe: its author needs the line
        elif error.details:
            print(error.details, file=sys.stderr)
    remaining = [index for index in range(len(grid.cells)) if index not in failed]
    lines = []
    for index, error in failed.items():
        why = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        lines.append(f"{grid.cells[index].label} {grid.variants[index]}".rstrip() + f": {why}")
    cells, variants = zip(*((grid.cells[index], grid.variants[index]) for index in remaining), strict=True)
    return replace(grid, cells=cells, variants=variants), lines


def find_prepared(cells: Sequence[Cell]) -> dict[int, Materials]:
    """Return the materials that `prepare` made earlier, by index of the cell; makes nothing.

    A cell of which any part is missing is left out.
    """
    materials: dict[int, Materials] = {}
    opened = _Opened(processes.run)
    for indices in group_by_materials(cells):
        first = cells[indices[0]]
        folder, _, _ = corpus_folder(first.corpus)
        if not (folder / "corpus.json").is_file() or (first.noise.set == "builtin" and not has_builtin_bank()):
            continue
        corpus = opened.corpus(first.corpus)
        if not text_path(corpus, first.text).is_file():
            continue
        train, test = conditions(first, max(cells[n].train.draws for n in indices))
        sources = {}
        for letter in letters_of(cells, indices):
            choice = first.tokenizers[letter]
            sources[letter] = TokenSource(corpus, choice.recipe, choice.settings, train[0])
        if all(source.is_learned for source in sources.values()):
            ready = {letter: source.learn() for letter, source in sources.items()}
            materials |= dict.fromkeys(indices, Materials(corpus, ready, open_text(corpus, first.text), train, test))
    return materials


def clips_to_encode(cells: Sequence[Cell], materials: dict[int, Materials]) -> int | None:
    """Count the clips that are not in the token cache, once per tokenizer and condition.

    Args:
        materials: by index of the cell, as `find_prepared` returns them.

    Returns:
        The count; None if a cell has no materials yet, so that its clips are unknown.
    """
    if len(materials) < len(cells):
        return None
    missing: set[tuple[str, str, str]] = set()  # tokenizer, condition and clip, which several folds may have
    for index, cell in enumerate(cells):
        train, test = materials[index].train_conditions, materials[index].test_conditions.values()
        for letter in cell.letters:
            source = materials[index].sources[letter]
            for split, conditions_of_split in (("train", train), (cell.split, test)):
                for condition in dict.fromkeys(map(source.condition_for, conditions_of_split)):
                    missing |= {(source.name, condition.key, key) for key in source.missing(split, condition)}
    return len(missing)
