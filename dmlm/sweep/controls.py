"""Controls: exchange a modality between utterances, in training or in a test."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dmlm.score.perceptual import matched_derangement
from dmlm.seeding import generator

if TYPE_CHECKING:  # `permute` runs without pydantic
    from dmlm.plan.cell import Cell
    from dmlm.sweep.materials import Materials


def exchanged_with(letter: str, cell: "Cell", materials: "Materials") -> list[str]:
    """Return the modalities to exchange together with `letter`: audio takes along encoders that use a first pass of it."""
    others = (
        [k for k in cell.letters if k != letter and materials.sources[k].encoder.depends_on_noise]
        if letter == "A"
        else []
    )
    return [letter, *others]


def permute(streams: Sequence[Mapping[str, Any]], letters: Sequence[str], draw: int) -> list[dict[str, Any]]:
    """Replace the modalities `letters` of each item by those of another item, its donor.

    Donors have a similar length in the first of these modalities. They depend only on those lengths and on `draw`, so
    they are the same for every model and SNR. An item that lacks the modality (no token) stays as it is and gives none.
    """
    having = [item for item in streams if len(item[letters[0]])]
    donors = matched_derangement([len(item[letters[0]]) for item in having], generator("donors", letters[0], draw))
    of_donors = iter([{letter: having[donor][letter] for letter in letters} for donor in donors])
    return [{**item, **next(of_donors)} if len(item[letters[0]]) else dict(item) for item in streams]
