"""Controls: a modality that comes from another utterance, in training or in a test."""

from collections.abc import Mapping, Sequence
from typing import Any

from dmlm.plan.cell import Cell
from dmlm.score.perceptual import matched_derangement
from dmlm.seeding import generator
from dmlm.sweep.materials import Materials


def exchanged_with(letter: str, cell: Cell, materials: Materials) -> list[str]:
    """The modality and whatever else of the cell was made from it: text that was chosen by the audio goes with it."""
    others = (
        [k for k in cell.letters if k != letter and materials.sources[k].encoder.depends_on_noise]
        if letter == "A"
        else []
    )
    return [letter, *others]


def permute(streams: Sequence[Mapping[str, Any]], letters: Sequence[str], draw: int) -> list[dict[str, Any]]:
    """Give each item those modalities of another whose first is as long: the same donors for every model and SNR."""
    donors = matched_derangement([len(item[letters[0]]) for item in streams], generator("donors", letters[0], draw))
    return [
        {**item, **{letter: streams[donor][letter] for letter in letters}}
        for item, donor in zip(streams, donors, strict=True)
    ]
