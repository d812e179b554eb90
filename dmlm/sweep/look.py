"""Gather everything about one utterance of the corpus of a grid under one noise condition, for `dmlm corpus look`."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from dmlm import paths, snr
from dmlm.corpus import media
from dmlm.corpus.condition import Condition
from dmlm.corpus.manifest import Corpus, Utterance, read_corpus, read_lines, read_utterances
from dmlm.corpus.noise import NoiseSettings, noisy_spans
from dmlm.errors import UserError
from dmlm.modalities import SAMPLE_RATE_HZ, TARGET
from dmlm.plan.cell import Cell, validated
from dmlm.plan.grid import Grid, read_grid_file
from dmlm.results.grid import GridCell, grid_folders, is_grid, read_grid
from dmlm.results.look import Look, PackedSequence, Sound, Stream, Transcript
from dmlm.sequence.template import Template, pack
from dmlm.sweep.materials import Materials, materials_key
from dmlm.sweep.parts import corpus_folder, open_bank, open_corpus
from dmlm.sweep.preparation import find_ready
from dmlm.tokens.encoder import Tokenizer


def grid_named(name: str, overrides: Sequence[str] = ()) -> Grid:
    """Return a grid that was run, as it was run, or else that of a sweep file; with overrides always the latter.

    Raises:
        UserError: there is neither, or an override is wrong.
    """
    folder = paths.runs() / name
    if overrides or "/" in name or not is_grid(folder):
        return read_grid_file(name, overrides)
    run = read_grid(folder)
    cells = tuple(validated(Cell, cell.settings, str(folder)) for cell in run.cells)
    return Grid(run.name, run.baseline, run.about, cells, tuple(cell.variant for cell in run.cells))


def grid_with(name: str) -> str:
    """Return the grid that was run last of those whose corpus has an utterance.

    Raises:
        UserError: there is none; says which corpora have it.
    """
    for folder in sorted(grid_folders(paths.runs()), key=lambda folder: -(folder / "grid.json").stat().st_mtime):
        choices = {corpus_folder(cell.corpus)[0] for cell in grid_named(folder.name).cells}
        if any(_holds(corpus, name) for corpus in choices):
            return folder.name
    having = [
        path.parent.name for path in (paths.home() / "corpora").glob("*/corpus.json") if _holds(path.parent, name)
    ]
    where = (
        f"corpus {having[0]} has it: add --corpus {paths.home() / 'corpora' / having[0]}"
        if having
        else ("no corpus here has it: say which with --corpus or --grid")
    )
    raise UserError(f"No grid that was run has an utterance {name!r}; {where}.")


def _holds(corpus: Path, name: str) -> bool:
    """Whether the manifest of a corpus has an utterance."""
    manifest = corpus / "manifest.jsonl"
    return manifest.is_file() and any(line.id == name for line in read_lines(manifest))


def look_in_grid(grid: Grid, name: str, snr_db: float, kind: str | None = None, number: int = 0) -> Look:
    """Gather an utterance of the corpus of a grid.

    Args:
        grid: tells corpus, noise, tokenizers and templates.
        name: id of the utterance.
        snr_db: at which it is heard; `snr.CLEAN_DB`: without noise.
        kind: only this kind of noise.
        number: of the cell whose corpus, noise and tokenizers are meant; templates are those of all cells with the same.

    Raises:
        UserError: there is no such cell or utterance, its media cannot be read, or they cannot be mixed at this SNR.
    """
    if number >= len(grid.cells):
        raise UserError(f"--cell {number}: {grid.name} has cells 0 to {len(grid.cells) - 1}; see: dmlm grid show")
    key = materials_key(grid.cells[number])
    cells = [cell for cell in grid.cells if materials_key(cell) == key]
    materials = find_ready(cells).get(0)
    corpus = materials.corpus if materials else open_corpus(cells[0].corpus)
    utterance = find_utterance(corpus, name)
    condition = _condition(cells[0].noise, snr_db, kind, utterance)
    notes: list[str] = []
    streams: dict[str, Stream] = {}
    sequences: tuple[PackedSequence, ...] = ()
    if rule := corpus.left_out.get(utterance.id):
        notes.append(f"This utterance is left out of the grid by rule {rule}, so nothing encodes it.")
    elif materials is None:
        notes.append(
            "No tokens are shown, because the grid is not prepared: its codebooks are not learned, or its recordings not"
            " checked. Run it first, or only prepare it: dmlm grid run GRID --dry-run --probe."
        )
    else:
        streams = _streams(materials, cells, utterance, condition, notes)
        sequences = tuple(_sequences(materials, cells, streams))
    transcripts = tuple(_transcripts(grid, corpus, utterance, condition))
    if not transcripts and (tested_db := _tested_db(grid)):
        levels = ", ".join(map(snr.with_unit, tested_db))
        notes.append(f"No transcripts are stored of this condition; split {cells[0].split} was tested at: {levels}.")
    return _look(corpus, utterance, f"grid {grid.name}", condition, streams, sequences, transcripts, notes)


def look_in_corpus(manifest: Path, noise: NoiseSettings, name: str, snr_db: float, kind: str | None = None) -> Look:
    """Gather an utterance of a corpus that no grid need know: what is heard and seen, without tokens.

    Raises:
        UserError: as `look_in_grid`; or the manifest cannot be read.
    """
    folder = manifest.parent
    is_whole = manifest.name == "manifest.jsonl" and (folder / "corpus.json").is_file()
    corpus = read_corpus(folder) if is_whole else Corpus(folder, read_utterances(manifest), {"name": folder.name})
    utterance = find_utterance(corpus, name)
    condition = _condition(noise, snr_db, kind, utterance)
    notes = [
        "No tokens are shown, because a corpus alone tells no tokenizers: name a grid that reads it, with --grid and without --corpus."
    ]
    return _look(corpus, utterance, f"corpus {folder}", condition, {}, (), (), notes)


def find_utterance(corpus: Corpus, name: str) -> Utterance:
    """Return an utterance by its id, also one that is left out.

    Raises:
        UserError: there is none; the sentence names the nearest ids.
    """
    by_id = {utterance.id: utterance for utterance in (*corpus.utterances, *(u for u, _ in corpus.unused))}
    if name in by_id:
        return by_id[name]
    if near := get_close_matches(name, by_id, n=3):
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    else:
        hint = f"its {len(by_id):,} ids are like {' or '.join(map(repr, [*by_id][:: max(1, len(by_id) - 1)][:2]))}."
    raise UserError(f"The corpus in {corpus.folder} has no utterance {name!r}; {hint}")


def _condition(noise: NoiseSettings, snr_db: float, kind: str | None, utterance: Utterance) -> Condition:
    """Return the condition in which the grid's test hears an utterance at this SNR; with `kind`, another noise."""
    if kind:
        noise = noise.model_copy(update={"kinds": (kind,)})
    return Condition.of((snr_db,), 0, noise, open_bank(noise), utterance.split)


def _look(
    corpus: Corpus,
    utterance: Utterance,
    source: str,
    condition: Condition,
    streams: dict[str, Stream],
    sequences: tuple[PackedSequence, ...],
    transcripts: tuple[Transcript, ...],
    notes: Sequence[str],
) -> Look:
    """Read the media, mix them, and put everything together."""
    path = corpus.media(utterance, "audio")
    label = f"{corpus.card['name']} {corpus.card.get('version', '')}".strip()
    return Look(
        utterance=utterance,
        corpus=label,
        source=source,
        condition=condition,
        sound=_sound(condition, utterance, media.read_audio(path), str(path)),
        lips=media.read_video(corpus.media(utterance, "lips")) if utterance.lips else None,
        page=media.read_image(corpus.media(utterance, "image")) if utterance.image else None,
        streams=streams,
        sequences=sequences,
        transcripts=transcripts,
        notes=tuple(notes),
    )


def _sound(condition: Condition, utterance: Utterance, speech: np.ndarray, name: str) -> Sound:
    """Mix an utterance and take the mixture apart."""
    mixed = condition.apply(utterance, speech, name)
    clean = (mixed.gain * speech.astype(np.float64)).astype(np.float32)
    noisy = snr.noisy(mixed.snr_db_measured)
    spans = noisy_spans(utterance, len(speech), condition.noise) if noisy else []
    return Sound(
        noisy=mixed.audio,
        clean=clean,
        noise=mixed.audio - clean,
        noise_file=condition.noise_of(utterance, len(speech))[1].path if noisy else None,
        noisy_spans_s=tuple((span.start / SAMPLE_RATE_HZ, span.stop / SAMPLE_RATE_HZ) for span in spans),
        snr_db_measured=mixed.snr_db_measured,
    )


def _streams(
    materials: Materials, cells: Sequence[Cell], utterance: Utterance, condition: Condition, notes: list[str]
) -> dict[str, Stream]:
    """Return the token streams of an utterance by letter, from the cache or encoded now; what it lacks is noted."""
    text, streams = materials.text, {}

    def of_text(letter: str, encoder: str, content: str) -> Stream:
        ids = text.encode(content)
        pieces = tuple(text.pieces(ids.tolist()))
        return Stream(letter=letter, encoder=encoder, ids=ids, vocab_size=text.size, text=content, pieces=pieces)

    for letter in dict.fromkeys(letter for cell in cells for letter in cell.letters):
        source = materials.sources[letter]
        if getattr(utterance, source.encoder.media) is None:
            notes.append(f"The utterance has no {source.encoder.media}, so there are no tokens {letter}.")
            if any(cell.corpus.lacking == "error" for cell in cells):
                continue
        content = source.load_some([utterance], condition).tokens[utterance.id]
        if isinstance(source.encoder, Tokenizer):
            facts: dict[str, Any] = {"vocab_size": source.encoder.vocab_size, "rate_hz": source.encoder.rate_hz}
            streams[letter] = Stream(letter=letter, encoder=source.name, ids=content, **facts)
        else:
            streams[letter] = of_text(letter, source.name, content)
    streams[TARGET] = of_text(TARGET, "text vocabulary", utterance.text)
    return streams


def _sequences(materials: Materials, cells: Iterable[Cell], streams: dict[str, Stream]) -> Iterable[PackedSequence]:
    """Yield the packed sequence of each template whose modalities the utterance has."""
    for notation in dict.fromkeys(cell.template for cell in cells):
        template = Template.parse(notation)
        if not streams.keys() >= {*template.letters}:
            continue
        vocabulary = materials.vocabulary(template.letters)
        ids = {letter: stream.ids for letter, stream in streams.items()}
        packed = pack(template, ids, vocabulary, materials.rates_hz)
        units = vocabulary.names()
        names = [
            units[token - vocabulary.text_size] if token >= vocabulary.text_size else materials.text.pieces([token])[0]
            for token in packed.ids.tolist()
        ]
        yield PackedSequence(
            template=template,
            packed=packed,
            names=tuple(names),
            text_size=vocabulary.text_size,
            vocabulary_size=vocabulary.size,
        )


def _transcripts(grid: Grid, corpus: Corpus, utterance: Utterance, condition: Condition) -> Iterable[Transcript]:
    """Yield what the models of a grid wrote of an utterance in this very condition, as far as it is stored."""
    folder = paths.runs() / grid.name
    for cell in read_grid(folder).cells if is_grid(folder) else ():
        if cell.corpus.digest != corpus.digest:
            continue
        for evaluation in cell.evaluations:
            if evaluation.permuted or not evaluation.done or evaluation.folder.condition != condition.key:
                continue
            for result in evaluation.utterances:
                if result.id == utterance.id:
                    normaliser = evaluation.result.normaliser
                    yield _transcript(cell, result, normaliser)


def _tested_db(grid: Grid) -> list[float]:
    """Return the SNRs at which the models of a grid were tested; empty if it was not run."""
    folder = paths.runs() / grid.name
    results = read_grid(folder) if is_grid(folder) else None
    return sorted({evaluation.snr_db for evaluation in results.finished}, reverse=True) if results else []


def _transcript(cell: GridCell, result: Any, normaliser: str) -> Transcript:
    details = [cell.variant, f"seed {cell.seed}" if cell.seed else ""]
    inputs = cell.template.removesuffix(" -> T")
    detail = ", ".join(filter(None, details))
    return Transcript(model=cell.model, inputs=inputs, detail=detail, result=result, normaliser=normaliser)
