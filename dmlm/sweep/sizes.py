"""How much a cell computes: the lengths of its sequences, and what follows for operations, memory and disk."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmlm.errors import UserError
from dmlm.model import pretrained
from dmlm.model.cost import Cost
from dmlm.model.family import SIZES
from dmlm.plan.cell import Cell
from dmlm.sequence.batches import POOL_BATCHES
from dmlm.sequence.template import Template, pack
from dmlm.sweep.materials import Materials
from dmlm.tokens.encoder import Tokenizer
from dmlm.tokens.shards import TokenSource

SAMPLE = 300  # utterances whose lengths are looked at
WEIGHT_BYTES, STATE_BYTES = 4, 12  # of a parameter: the model that stays; weights and moments in a checkpoint
CHECKPOINTS = 3  # at most two complete ones and one being written


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of the sequences of a cell, means over a sample."""

    sequence: float  # of training, <bos> to <eos>
    attended: float  # earlier tokens of a token, mean over all tokens
    prompt: float  # of a test
    text: float  # of a transcript
    longest: int  # in the sample
    long: float  # of the batch with the longest sequences, as batches hold sequences of similar length
    train_utterances: int
    test_utterances: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a cell computes. Without `lengths`, which need corpus and tokens, only the parameters and the disk are known."""

    cost: Cost
    lengths: Lengths | None
    tokens: float = 0.0  # of the training
    train_operations: float = 0.0
    test_operations: float = 0.0  # of one test condition
    memory_bytes: float = 0.0  # at the peak of training, estimated

    @property
    def disk_bytes(self) -> int:
        """The model, which stays; checkpoints of the running training come on top, see `checkpoint_bytes`."""
        return WEIGHT_BYTES * self.cost.parameters

    @property
    def checkpoint_bytes(self) -> int:
        """Checkpoints on disk while the cell is trained."""
        return CHECKPOINTS * STATE_BYTES * self.cost.parameters


def size_of(cell: Cell, materials: Materials | None) -> Size | None:
    """Return what a cell computes; None if the size of its network or of its vocabulary is not known."""
    if pretrained.is_named(cell.backbone) or (cell.text.tokenizer and materials is None):
        return None
    family = SIZES[cell.backbone]
    vocabulary = materials.vocabulary(cell.letters).size if materials else _vocabulary_size(cell)
    cost = family.cost(family.sizes[cell.backbone], vocabulary, cell.model.context)
    try:
        lengths = lengths_of(cell, materials) if materials else None
    except UserError:  # a run says what is wrong with this cell
        lengths = None
    if lengths is None:
        return Size(cost=cost, lengths=None)
    train, count = cell.train, lengths.train_utterances
    batch = count / -(-count // train.batch_size)  # mean; the last batch of an epoch is smaller
    tokens, most = train.steps * batch * lengths.sequence, min(train.batch_size, count) * lengths.long
    at_once = min(most, max(lengths.long, cell.execution.micro_tokens or most))
    read = cost.read_operations(lengths.prompt, lengths.prompt / 2)
    write = cell.decode.beams * cost.forward_operations(lengths.text, lengths.prompt + lengths.text / 2)
    return Size(
        cost=cost,
        lengths=lengths,
        tokens=tokens,
        train_operations=cost.train_operations(tokens, lengths.attended, cell.execution.recompute),
        test_operations=lengths.test_utterances * (read + write),
        memory_bytes=cost.train_bytes(at_once, cell.execution.recompute),
    )


def _vocabulary_size(cell: Cell) -> int:
    """Return the number of IDs of a cell, if its text has as many as were asked for."""
    from dmlm.tokens.vocabulary import SPECIALS

    size = cell.text.vocab_size + len(SPECIALS)
    for letter in cell.letters:
        encoder = TokenSource.check(letter, cell.tokenizers[letter].recipe, cell.tokenizers[letter].settings)
        size += encoder.vocab_size if isinstance(encoder, Tokenizer) else 0
    return size


def lengths_of(cell: Cell, materials: Materials) -> Lengths | None:
    """Return the lengths of a sample of sequences; None if their tokens are not in the cache."""
    train = materials.train_conditions[0]
    sources = [materials.sources[letter] for letter in cell.letters]
    if any(source.missing("train", source.condition_for(train)) for source in sources):
        return None
    streams, _ = materials.streams(cell.letters, "train", train)
    vocabulary, template = materials.vocabulary(cell.letters), Template.parse(cell.template)
    some = streams[:SAMPLE]
    whole = _lengths([pack(template, item, vocabulary, materials.rates_hz) for item in some])
    prompts = _lengths([pack(template, item, vocabulary, materials.rates_hz, with_target=False) for item in some])
    return Lengths(
        sequence=float(whole.mean()),
        attended=float((whole**2).sum() / whole.sum() / 2),
        prompt=float(prompts.mean()),
        text=float((whole - prompts).mean()),
        longest=int(whole.max()),
        long=float(np.quantile(whole, 1 - 1 / POOL_BATCHES)),
        train_utterances=len(streams),
        test_utterances=len(materials.corpus.split(cell.split)),
    )


def _lengths(sequences: Sequence[object]) -> np.ndarray:
    return np.array([len(sequence) for sequence in sequences], dtype=float)  # type: ignore[arg-type]
