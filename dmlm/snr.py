"""Signal-to-noise ratios (SNR) in dB: parse, validate, write and compare. Infinity means clean speech."""

import math
from typing import Annotated, Any

from pydantic import BeforeValidator

CLEAN_DB = math.inf
CLEAN_NAMES = ("clean", "Infinity")  # the second as settings are written in JSON
TOLERANCE_DB = 0.1  # largest allowed difference between a measured SNR and the requested one


def parse(value: Any) -> float:
    """Parse an SNR from a file or the command line: a number of dB, or `clean`.

    Raises:
        ValueError: not a number, or minus infinity (noise without speech).

    >>> parse("clean"), parse(-5), parse("-0")
    (inf, -5.0, 0.0)
    """
    try:
        snr_db = CLEAN_DB if value in CLEAN_NAMES else float(value)
    except (TypeError, OverflowError, ValueError):
        snr_db = math.nan
    overflown = snr_db == CLEAN_DB and value != CLEAN_DB and value not in CLEAN_NAMES  # "1e400" is no clean speech
    if isinstance(value, bool) or overflown or not snr_db > -math.inf:
        raise ValueError("an SNR is a number of dB, or `clean`")
    return snr_db + 0.0  # turns -0.0 into 0.0


def text(snr_db: float) -> str:
    """Write an SNR in the form that `parse` reads.

    >>> text(-5.0), text(CLEAN_DB)
    ('-5', 'clean')
    """
    return f"{snr_db:g}" if noisy(snr_db) else "clean"


def with_unit(snr_db: float) -> str:
    """Write an SNR with its unit, for headings.

    >>> with_unit(-5.0), with_unit(CLEAN_DB)
    ('-5 dB', 'clean')
    """
    return f"{snr_db:g} dB" if noisy(snr_db) else "clean"


def noisy(snr_db: float) -> bool:
    """Whether an SNR means that there is noise, that is, it is finite."""
    return math.isfinite(snr_db)


def agrees(measured_db: float, snr_db: float) -> bool:
    """Whether a measured SNR is within 0.1 dB of the requested one; clean speech must be exactly clean.

    >>> agrees(0.05, 0.0), agrees(0.2, 0.0), agrees(CLEAN_DB, CLEAN_DB), agrees(20.0, CLEAN_DB)
    (True, False, True, False)
    """
    return measured_db == snr_db or (noisy(snr_db) and abs(measured_db - snr_db) <= TOLERANCE_DB)


Snr = Annotated[float, BeforeValidator(parse)]  # settings field: a number of dB, or `clean`
