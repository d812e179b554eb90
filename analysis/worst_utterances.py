"""The ten utterances that a system reads worst, aligned with their references; beside them what the baseline read."""

from pathlib import Path

from dmlm import files, snr
from dmlm.results.exhibit import Exhibit
from dmlm.results.grid import GridEvaluation, GridResults
from dmlm.results.measures import System, baseline_of, cells_of, compared, wer_point
from dmlm.score.wer import align

ORDER = 70
NAME = "worst_utterances"
TITLE = "Ten worst utterances"
SHOWN = 10


def _chosen(results: GridResults) -> tuple[System, float] | None:
    """The best compared system of the grid at the level nearest 0 dB, where noise bites and speech is still there."""
    levels = sorted(results.snrs_db, key=lambda snr_db: (abs(snr_db), snr_db))
    for snr_db in levels:
        points = [wer_point(results, system, snr_db) for system in compared(results)]
        values = {point.system: point.estimate.value for point in points if point.estimate}
        if values:
            return min(values, key=lambda system: values[system]), snr_db
    return None


def _reading(results: GridResults, system: System, snr_db: float) -> GridEvaluation | None:
    evaluations = [e for cell in cells_of(results, system) for e in cell.evaluations if not e.permuted]
    return next((e for e in evaluations if e.snr_db == snr_db and e.done), None)


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Write the alignments as text."""
    chosen = _chosen(results)
    reading = _reading(results, *chosen) if chosen else None
    if not chosen or not reading:
        return Exhibit(title=TITLE, caption="Nothing to show yet: no evaluation with a further modality is finished.")
    system, snr_db = chosen
    baseline = baseline_of(results, system)
    other = _reading(results, baseline, snr_db) if baseline else None
    theirs = {utterance.id: utterance for utterance in other.utterances} if other else {}
    worst = sorted(reading.utterances, key=lambda u: (-u.errors / u.reference_words, u.id))[:SHOWN]
    blocks = []
    for utterance in worst:
        lines = [f"{utterance.id}"]
        for name, heard in ((system.name, utterance), (baseline.name if baseline else "", theirs.get(utterance.id))):
            if heard:
                aligned = align(heard.reference, heard.hypothesis)
                lines += [f"  {name}: {heard.errors} errors in {heard.reference_words} words"]
                lines += [
                    f"    {tag}  {text}".rstrip() for tag, text in zip(("REF", "HYP", "   "), aligned, strict=True)
                ]
        blocks.append("\n".join(lines))
    text = "\n\n".join(blocks) + "\n"
    condition = f"at {snr.text(snr_db)} dB" if snr.noisy(snr_db) else "in clean speech"
    files.write_text(folder / f"{NAME}.txt", text)
    return Exhibit(
        title=TITLE,
        caption=(
            f"{system.model} {system.name} {condition} (the best system at that level, its first finished seed), by WER of"
            " the utterance; beneath each, what the baseline read. Words in error are in capitals: S substituted, D"
            " deleted, I inserted."
        ),
        files=(folder / f"{NAME}.txt",),
        text=text,
    )
