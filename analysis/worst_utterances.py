"""The ten utterances with the highest WER of the system with the lowest, aligned with their references, and the baseline's."""

from pathlib import Path

from dmlm import files, snr
from dmlm.plurals import counted
from dmlm.results.exhibit import Exhibit
from dmlm.results.grid import GridEvaluation, GridResults
from dmlm.results.measures import System, baseline_of, cells_of, compared_systems, wer_point
from dmlm.results.tables import has_learned
from dmlm.score.normalisers import of_stored
from dmlm.score.wer import align

ORDER = 70
NAME = "worst_utterances"
TITLE = "Ten worst utterances"
SHOWN = 10
KEY = "Words in error are in capitals: S substituted, D deleted, I inserted."


def _select(results: GridResults) -> tuple[System, float] | None:
    """Return the best compared system and its SNR: the one nearest 0 dB, where noise matters and speech is audible.

    A system that has not learned is taken only if no other has.
    """
    snrs_db = sorted(results.snrs_db, key=lambda snr_db: (abs(snr_db), snr_db))
    for snr_db in snrs_db:
        points = [wer_point(results, system, snr_db) for system in compared_systems(results)]
        values = {point.system: point.estimate.value for point in points if point.estimate}
        if values:
            return min(values, key=lambda system: (not has_learned(results, system), values[system])), snr_db
    return None


def _evaluation(results: GridResults, system: System, snr_db: float) -> GridEvaluation | None:
    """Return the first finished evaluation of a system at an SNR, without permutation."""
    evaluations = [e for cell in cells_of(results, system) for e in cell.evaluations if not e.permuted]
    return next((e for e in evaluations if e.snr_db == snr_db and e.done), None)


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Write the alignments as text."""
    selected = _select(results)
    evaluation = _evaluation(results, *selected) if selected else None
    if not selected or not evaluation:
        return Exhibit(title=TITLE, caption="Nothing to show yet: no evaluation with a further modality is finished.")
    system, snr_db = selected
    normaliser = of_stored(evaluation.result.normaliser)
    baseline = baseline_of(results, system)
    other = _evaluation(results, baseline, snr_db) if baseline else None
    of_baseline = {utterance.id: utterance for utterance in other.utterances} if other else {}
    worst = sorted(evaluation.utterances, key=lambda u: (-u.errors / u.reference_words, u.id))[:SHOWN]
    blocks = []
    for utterance in worst:
        lines = [f"{utterance.id}"]
        baseline_name = baseline.name if baseline else ""
        for name, result in ((system.name, utterance), (baseline_name, of_baseline.get(utterance.id))):
            if result:
                aligned = align(result.reference, result.hypothesis, normaliser)
                sizes = counted(result.errors, "error"), counted(result.reference_words, "word")
                lines += [f"  {name}: {' in '.join(sizes)}"]
                lines += [
                    f"    {tag}  {text}".rstrip() for tag, text in zip(("REF", "HYP", "   "), aligned, strict=True)
                ]
        blocks.append("\n".join(lines))
    text = "\n\n".join(blocks) + "\n"
    condition = f"at {snr.text(snr_db)} dB" if snr.noisy(snr_db) else "in clean speech"
    which = "the best system" if has_learned(results, system) else "no system has learned; the one of lowest WER"
    files.write_text(folder / f"{NAME}.txt", f"{KEY}\n\n{text}")
    return Exhibit(
        title=TITLE,
        caption=(
            f"{system.model} {system.name} {condition} ({which} at that level, its first finished seed), by WER of the"
            f" utterance; beneath each, what the baseline read. {KEY}"
        ),
        files=(folder / f"{NAME}.txt",),
        text=text,
    )
