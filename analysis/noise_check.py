"""Check of the noise: measured against nominal SNR, for every noisy SNR of the grid."""

import math
from pathlib import Path

from dmlm import snr
from dmlm.results.exhibit import Exhibit, Table, csv_number, write_csv
from dmlm.results.grid import GridResults

ORDER = 80
NAME = "noise_check"


def draw(results: GridResults, folder: Path) -> Exhibit:
    """Write the largest deviation at each SNR. Reading results with one above 0.1 dB already raises an error."""
    rows, csv_rows = [], []
    for snr_db in results.snrs_db:
        if not snr.noisy(snr_db):
            continue
        done = [e for cell in results.cells for e in cell.evaluations if e.snr_db == snr_db and e.done]
        deviations = [evaluation.deviation_db(utterance) for evaluation in done for utterance in evaluation.utterances]
        measured = [abs(deviation) for deviation in deviations if not math.isnan(deviation)]
        largest = max(measured, default=math.nan)
        unmeasured = len(deviations) - len(measured)
        rows.append(
            (
                snr.text(snr_db),
                f"{len(done)}",
                f"{len(measured)}",
                f"{unmeasured}",
                f"{largest:.3f}" if measured else "—",
            )
        )
        csv_rows.append([snr.text(snr_db), len(done), len(measured), unmeasured, csv_number(largest)])
    head = ("snr_db", "evaluations", "utterances_measured", "utterances_unmeasured", "largest_deviation_db")
    titles = ("SNR (dB)", "evaluations", "readings measured", "readings not measured", "largest deviation (dB)")
    table = Table("Measured SNR inside the noisy span, against the nominal one", titles, tuple(rows))
    return Exhibit(
        title="SNR check",
        caption=(
            f"An evaluation with an utterance that is off by more than {snr.TOLERANCE_DB:g} dB is refused; none of"
            " these is."
            if any(row[1] != "0" for row in rows)
            else "No noisy evaluation is finished yet."
        ),
        files=(write_csv(folder / f"{NAME}.csv", head, csv_rows),),
        tables=(table,) if rows else (),
    )
