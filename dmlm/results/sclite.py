"""Transcripts in the formats of NIST's sclite, so that its reports can be made of an evaluation and its counts compared.

The formats: doc/infmts.htm of SCTK, https://github.com/usnistgov/SCTK. Texts are normalised as they were for our own
counts. What sclite gives a meaning (alternatives in braces, `@`, optional words in parentheses, comments, labels) is
written as `%` and two hexadecimal digits. Score with

    sclite -s -e utf-8 -i spu_id -r ref.trn trn -h hyp.trn trn

where `-s` compares exactly. Its alignment costs 4 for a substitution and 3 for a deletion or insertion, ours 1 for each:
it never finds fewer errors than we do, and now and then one more in a very bad transcript.
"""

from collections.abc import Sequence
from pathlib import Path

from dmlm import files
from dmlm.errors import UserError
from dmlm.results.grid import GridEvaluation, GridResults
from dmlm.results.records import UtteranceResult
from dmlm.score.normalisers import Normaliser, of_stored

SPECIAL = str.maketrans({sign: f"%{ord(sign):02X}" for sign in "%{}/@();<>"})
NOMINAL = ";; No times are stored with results: word n stands at second n of its utterance.\n"


def escaped(text: str) -> str:
    """Write what sclite gives a meaning as `%` and two hexadecimal digits.

    >>> escaped("f(x) @ 50 %")
    'f%28x%29 %40 50 %25'
    """
    return text.translate(SPECIAL)


def utterance_id(utterance: UtteranceResult) -> str:
    """Return `SPEAKER-UTTERANCE`. With `-i spu_id`, sclite takes what stands before the first hyphen as the speaker.

    An utterance without a speaker is of speaker `unknown`.
    """
    return f"{_word(utterance.speaker or 'unknown').replace('-', '%2D')}-{_word(utterance.id)}"


def _word(name: str) -> str:
    return "".join(f"%{ord(letter):02X}" if letter.isspace() else letter for letter in escaped(name))


def trn(utterances: Sequence[UtteranceResult], normaliser: Normaliser) -> tuple[str, str]:
    """Return the `trn` files of references and hypotheses: a line of words, and the utterance in parentheses."""

    def lines(texts: Sequence[str]) -> str:
        pairs = zip(texts, utterances, strict=True)
        return "".join(f"{escaped(normaliser(text))} ({utterance_id(utterance)})\n" for text, utterance in pairs)

    return lines([utterance.reference for utterance in utterances]), lines([u.hypothesis for u in utterances])


def stm_and_ctm(utterances: Sequence[UtteranceResult], normaliser: Normaliser) -> tuple[str, str]:
    """Return the `stm` file of the references and the `ctm` file of the hypotheses.

    Each utterance is one segment of a file of its own, on channel A. Times are nominal, and the files say so.
    """
    segments, words = [], []
    for utterance in sorted(utterances, key=lambda u: _word(u.id)):
        name, speaker = _word(utterance.id), _word(utterance.speaker or "unknown")
        reference, hypothesis = (escaped(normaliser(text)) for text in (utterance.reference, utterance.hypothesis))
        end_s = max(len(reference.split()), len(hypothesis.split()))
        segments.append(f"{name} A {speaker} 0.00 {end_s:.2f} {reference}\n")
        words += [f"{name} A {start_s:.2f} 1.00 {word}\n" for start_s, word in enumerate(hypothesis.split())]
    return NOMINAL + "".join(segments), NOMINAL + "".join(words)


def write_all(results: GridResults, folder: Path, timed: bool) -> int:
    """Write FOLDER/TRIAL/EVALUATION/ref.trn and hyp.trn, or ref.stm and hyp.ctm, of every finished evaluation.

    Returns:
        The number of evaluations.

    Raises:
        UserError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder.")
    done = [
        (cell.trial.path.name, evaluation)
        for cell in results.cells
        for evaluation in cell.evaluations
        if evaluation.done
    ]
    for trial, evaluation in done:
        _write(evaluation, folder / trial / evaluation.folder.path.name, timed)
    return len(done)


def _write(evaluation: GridEvaluation, folder: Path, timed: bool) -> None:
    form, names = (stm_and_ctm, ("ref.stm", "hyp.ctm")) if timed else (trn, ("ref.trn", "hyp.trn"))
    texts = form(evaluation.utterances, of_stored(evaluation.result.normaliser))
    for name, text in zip(names, texts, strict=True):
        files.write_text(folder / name, text)
