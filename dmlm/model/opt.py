"""OPT (Zhang et al. 2022, arXiv 2205.01068) over flat batches and static caches, on the weights of `transformers`' class.

The same numbers as `OPTForCausalLM` (tested), without its padding and its general machinery.

Shapes: T tokens, B sequences, N tokens of the longest, D width, H heads, d width of a head, S room of a cache.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout, embedding, layer_norm, linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import OPTConfig, OPTForCausalLM
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from dmlm.errors import UserError
from dmlm.model.family import BackboneSpec
from dmlm.model.layout import Layout

FIRST_POSITION = 2  # row of position 0 in the table: OPT's own offset

Attend = Callable[[torch.Tensor], torch.Tensor]  # (T, 3 D) of queries, keys and values to (T, D)
Affine = tuple[torch.Tensor, torch.Tensor | None]  # weight and bias


def new_model(spec: BackboneSpec, config: dict[str, Any]) -> OPTForCausalLM:
    """A model from scratch; `config` holds its dimensions and special IDs."""
    return OPTForCausalLM(
        OPTConfig(  # type: ignore[call-arg]  # attn_implementation is a keyword of its base class
            **config,
            word_embed_proj_dim=config["hidden_size"],
            max_position_embeddings=spec.context,
            dropout=spec.dropout,
            attn_implementation="sdpa",
        )
    )


def adapt(model: OPTForCausalLM, spec: BackboneSpec) -> None:
    """Give a pretrained model the dropout asked for.

    Raises:
        UserError: its context is shorter than asked for.
    """
    if model.config.max_position_embeddings < spec.context:
        raise UserError(
            f"Backbone {spec.name!r} has a context of {model.config.max_position_embeddings} tokens; lower model.context to it."
        )
    model.config.dropout = spec.dropout
    for layer in model.model.decoder.layers:
        layer.dropout = spec.dropout


def start_positions(model: OPTForCausalLM) -> None:
    """Begin position embeddings at sinusoids as large as the token embeddings: near positions start as near ones."""
    spread = float(model.get_input_embeddings().get_parameter("weight").data.std())
    positions = model.model.decoder.embed_positions.weight.data  # (context + 2, width)
    count, width = positions.shape
    angles = torch.arange(count)[:, None] * 1000.0 ** (-torch.arange(0, width, 2) / width)  # (count, width / 2)
    positions.copy_(math.sqrt(2) * spread * torch.cat([angles.sin(), angles.cos()], dim=1))


@dataclass(frozen=True, slots=True)
class _Layer:
    """The tensors of a layer at hand, because a step of decoding is too short for looking them up in modules."""

    norm_1: Affine
    qkv: Affine  # (3 D, D): one product instead of three
    out: Affine
    norm_2: Affine
    fc1: Affine
    fc2: Affine
    width: tuple[int]
    epsilon: float
    activation: Callable[[torch.Tensor], torch.Tensor]
    before: bool  # norms come before what they feed: all sizes but 350m
    dropout: float

    @classmethod
    def of(cls, layer: OPTDecoderLayer) -> "_Layer":
        attention = layer.self_attn
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        bias = torch.cat([part.bias for part in parts]) if parts[0].bias is not None else None
        norms = layer.self_attn_layer_norm, layer.final_layer_norm
        plain = attention.out_proj, layer.fc1, layer.fc2
        (norm_1, norm_2), (out, fc1, fc2) = ([(part.weight, part.bias) for part in group] for group in (norms, plain))
        return cls(
            norm_1=norm_1,
            qkv=(torch.cat([part.weight for part in parts]), bias),
            out=out,
            norm_2=norm_2,
            fc1=fc1,
            fc2=fc2,
            width=(layer.embed_dim,),
            epsilon=layer.self_attn_layer_norm.eps,
            activation=torch.relu if isinstance(layer.activation_fn, nn.ReLU) else layer.activation_fn,
            before=layer.do_layer_norm_before,
            dropout=layer.dropout if layer.training else 0.0,
        )


def _embed(model: OPTForCausalLM, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    decoder = model.model.decoder
    x = embedding(ids, decoder.embed_tokens.weight)
    if decoder.project_in is not None:
        x = decoder.project_in(x)
    return x + embedding(positions + FIRST_POSITION, decoder.embed_positions.weight)


def _through(layer: _Layer, x: torch.Tensor, attend: Attend) -> torch.Tensor:
    """One layer, (T, D) to (T, D)."""
    y = layer_norm(x, layer.width, *layer.norm_1, layer.epsilon) if layer.before else x
    y = linear(attend(linear(y, *layer.qkv)), *layer.out)
    x = x + (dropout(y, layer.dropout) if layer.dropout else y)
    if not layer.before:
        x = layer_norm(x, layer.width, *layer.norm_1, layer.epsilon)
    y = layer_norm(x, layer.width, *layer.norm_2, layer.epsilon) if layer.before else x
    y = linear(layer.activation(linear(y, *layer.fc1)), *layer.fc2)
    x = x + (dropout(y, layer.dropout) if layer.dropout else y)
    return x if layer.before else layer_norm(x, layer.width, *layer.norm_2, layer.epsilon)


def _finish(model: OPTForCausalLM, x: torch.Tensor) -> torch.Tensor:
    decoder = model.model.decoder
    if decoder.final_layer_norm is not None:
        x = decoder.final_layer_norm(x)
    return x if decoder.project_out is None else decoder.project_out(x)


def hidden_states(model: OPTForCausalLM, ids: torch.Tensor, layout: Layout, recompute: bool = False) -> torch.Tensor:
    """What the head reads, (T, D), for flat `ids` (T,). `recompute` trades time for memory (gradient checkpointing)."""
    heads = model.config.num_attention_heads
    rate = model.config.attention_dropout if model.training else 0.0

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = layout.side_by_side(qkv).unflatten(-1, (3, heads, -1)).permute(2, 1, 3, 0, 4)  # (B, H, N, d) each
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=rate)
        return layout.flat(mixed.permute(2, 0, 1, 3).flatten(2))

    x = _embed(model, ids, layout.positions)
    for layer in map(_Layer.of, model.model.decoder.layers):
        x = checkpoint(_through, layer, x, attend, use_reentrant=False) if recompute else _through(layer, x, attend)
    return _finish(model, x)


class Cache:
    """Keys and values in room set aside once: a column for each token read, in blocks as they were read.

    Rows of a block that are shorter than its longest leave columns behind that nobody sees.
    """

    def __init__(self, model: OPTForCausalLM, rows: int, room: int) -> None:
        config, table = model.config, model.model.decoder.embed_tokens.weight
        heads = config.num_attention_heads
        shape = config.num_hidden_layers, 2, rows, heads, room, config.hidden_size // heads
        self.store = torch.zeros(shape, dtype=table.dtype, device=table.device)
        self.seen = torch.ones(rows, 1, 1, room, dtype=torch.bool, device=table.device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=table.device)  # (B,) tokens read so far
        self.columns = 0  # in use
        self.gaps = False  # whether any column is unseen
        self.layers = [_Layer.of(layer) for layer in model.model.decoder.layers]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        self.store, self.lengths, self.seen = self.store.index_select(2, rows), self.lengths[rows], self.seen[rows]

    def visible(self) -> torch.Tensor | None:
        """What a token after all columns in use sees of them: (B, 1, 1, columns), None for everything."""
        return self.seen[..., : self.columns] if self.gaps else None


@torch.inference_mode()
def extend(model: OPTForCausalLM, ids: torch.Tensor, layout: Layout, cache: Cache) -> torch.Tensor:
    """Read more tokens after what the cache holds; returns what the head reads after each row's last one, (B, D)."""
    heads, before = model.config.num_attention_heads, cache.columns
    cache.columns += layout.longest
    block = slice(before, cache.columns)
    cache.seen[:, 0, 0, block] = layout.present().t()
    cache.gaps |= bool((layout.lengths < layout.longest).any())
    causal = torch.ones(layout.longest, layout.longest, dtype=torch.bool, device=ids.device).tril()
    earlier = cache.seen[..., :before].expand(-1, 1, layout.longest, -1)
    visible = torch.cat([earlier, causal.expand(layout.count, 1, -1, -1)], -1) if before else None
    x = _embed(model, ids, layout.positions + cache.lengths.repeat_interleave(layout.lengths))
    *layers, last = cache.layers

    def keep(number: int, kv: torch.Tensor) -> None:
        """Write keys and values (N, B, 2, H, d) into the block."""
        cache.store[number, :, :, :, block] = kv.permute(2, 1, 3, 0, 4)

    for number, layer in enumerate(layers):

        def attend(qkv: torch.Tensor, number: int = number) -> torch.Tensor:
            spread = layout.side_by_side(qkv).unflatten(-1, (3, heads, -1))  # (N, B, 3, H, d)
            keep(number, spread[:, :, 1:])
            q, (k, v) = spread[:, :, 0].permute(1, 2, 0, 3), cache.store[number, ..., : cache.columns, :]
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
            return layout.flat(mixed.permute(2, 0, 1, 3).flatten(2))

        x = _through(layer, x, attend)

    # after the last layer only the last token of a row matters, so of all others its keys and values are enough
    def attend_last(qkv: torch.Tensor) -> torch.Tensor:
        kv = cache.store[-1, ..., : cache.columns, :]
        return _look_back(qkv[:, : qkv.shape[1] // 3], kv, heads, cache.visible())

    y = layer_norm(x, last.width, *last.norm_1, last.epsilon) if last.before else x
    width = last.width[0]
    kv = linear(y, last.qkv[0][width:], None if last.qkv[1] is None else last.qkv[1][width:])
    keep(len(layers), layout.side_by_side(kv).unflatten(-1, (2, heads, -1)))
    cache.lengths = cache.lengths + layout.lengths
    return _finish(model, _through(last, x[layout.last], attend_last))


def _look_back(q: torch.Tensor, kv: torch.Tensor, heads: int, visible: torch.Tensor | None) -> torch.Tensor:
    """What one query a row (B, D) finds in keys and values (2, B, H, columns, d) of a layer, (B, D)."""
    k, v = kv.unbind()
    q = q.reshape(len(q), heads, 1, -1)
    return scaled_dot_product_attention(q, k, v, attn_mask=visible).view(len(q), -1)


@torch.inference_mode()
def step(model: OPTForCausalLM, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """One token (B,) more for each row; returns what the head reads, (B, D)."""
    heads, rows, column = model.config.num_attention_heads, len(ids), cache.columns
    cache.columns += 1
    visible = cache.visible()
    x = _embed(model, ids, cache.lengths)
    new, used = cache.store.select(-2, column).unbind(), cache.store.narrow(-2, 0, cache.columns).unbind()  # by layer
    for layer, place, kv in zip(cache.layers, new, used, strict=True):

        def attend(qkv: torch.Tensor, place: torch.Tensor = place, kv: torch.Tensor = kv) -> torch.Tensor:
            parts = qkv.view(rows, 3, heads, -1)
            place.copy_(parts[:, 1:].transpose(0, 1))
            return _look_back(parts[:, 0], kv, heads, visible)

        x = _through(layer, x, attend)
    cache.lengths += 1
    return _finish(model, x)
