"""OPT (Zhang et al. 2022, arXiv 2205.01068) for flat batches, with a preallocated cache for decoding.

It works on the weights of `OPTForCausalLM` of `transformers` and computes the same numbers (tested), without padding
and without what OPT does not need. The modules of all families have the same functions: `new_model`, `adapt`,
`start_positions`, `hidden_states`, `extend`, `step`, and the class `Cache`.

Shapes: T tokens, B sequences, N tokens of the longest, D width, H heads, d width of a head, S columns of a cache.
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
from dmlm.model.precision import attend_by_products, products_are_faster

torch.backends.cuda.enable_cudnn_sdp(
    False
)  # it prepares every new shape of a batch anew, which takes longer than a step
FIRST_POSITION = 2  # row of position 0 in the position embeddings: an offset peculiar to OPT

Attend = Callable[[torch.Tensor], torch.Tensor]  # (T, 3 D) of queries, keys and values to (T, D)
Affine = tuple[torch.Tensor, torch.Tensor | None]  # weight and bias


def new_model(spec: BackboneSpec, config: dict[str, Any]) -> OPTForCausalLM:
    """Build a model with random weights; `config` holds its dimensions and special IDs."""
    return OPTForCausalLM(
        OPTConfig(  # type: ignore[call-arg]  # attn_implementation is a parameter of its base class
            **config,
            word_embed_proj_dim=config["hidden_size"],
            max_position_embeddings=spec.context,
            dropout=spec.dropout,
            attn_implementation="sdpa",
        )
    )


def adapt(model: OPTForCausalLM, spec: BackboneSpec) -> None:
    """Set the dropout of a pretrained model to `spec.dropout`.

    Raises:
        UserError: its context is shorter than `spec.context`.
    """
    if model.config.max_position_embeddings < spec.context:
        raise UserError(
            f"Backbone {spec.name!r} has a context of {model.config.max_position_embeddings} tokens; lower model.context to it."
        )
    model.config.dropout = spec.dropout
    for layer in model.model.decoder.layers:
        layer.dropout = spec.dropout


def start_positions(model: OPTForCausalLM) -> None:
    """Initialise the position embeddings with sinusoids as large as the token embeddings.

    Neighbouring positions then start with similar embeddings.
    """
    std = float(model.get_input_embeddings().get_parameter("weight").data.std())
    positions = model.model.decoder.embed_positions.weight.data  # (context + 2, width)
    count, width = positions.shape
    angles = torch.arange(count)[:, None] * 1000.0 ** (-torch.arange(0, width, 2) / width)  # (count, width / 2)
    positions.copy_(math.sqrt(2) * std * torch.cat([angles.sin(), angles.cos()], dim=1))


def _affine(module: nn.Linear | nn.LayerNorm) -> Affine:
    return module.weight, module.bias


@dataclass(frozen=True, slots=True)
class _Layer:
    """The tensors of a layer. Looking them up in the modules would take a noticeable part of a decoding step."""

    norm_1: Affine
    qkv: Affine  # (3 D, D): queries, keys and values by one product instead of three
    out: Affine
    norm_2: Affine
    fc1: Affine
    fc2: Affine
    width: tuple[int]
    epsilon: float
    activation: Callable[[torch.Tensor], torch.Tensor]
    norm_first: bool  # norms precede attention and MLP: true for all sizes but 350m
    dropout: float

    @classmethod
    def of(cls, layer: OPTDecoderLayer) -> "_Layer":
        attention = layer.self_attn
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        bias = torch.cat([part.bias for part in projections]) if projections[0].bias is not None else None
        return cls(
            norm_1=_affine(layer.self_attn_layer_norm),
            qkv=(torch.cat([part.weight for part in projections]), bias),
            out=_affine(attention.out_proj),
            norm_2=_affine(layer.final_layer_norm),
            fc1=_affine(layer.fc1),
            fc2=_affine(layer.fc2),
            width=(layer.embed_dim,),
            epsilon=layer.self_attn_layer_norm.eps,
            activation=torch.relu if isinstance(layer.activation_fn, nn.ReLU) else layer.activation_fn,
            norm_first=layer.do_layer_norm_before,
            dropout=layer.dropout if layer.training else 0.0,
        )


def _embed(model: OPTForCausalLM, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Embed tokens (T,) at `positions` (T,), (T, D)."""
    decoder = model.model.decoder
    x = embedding(ids, decoder.embed_tokens.weight)
    if decoder.project_in is not None:
        x = decoder.project_in(x)
    return x + embedding(positions + FIRST_POSITION, decoder.embed_positions.weight)


def _apply_layer(layer: _Layer, x: torch.Tensor, attend: Attend) -> torch.Tensor:
    """Apply one layer, (T, D) to (T, D)."""
    y = layer_norm(x, layer.width, *layer.norm_1, layer.epsilon) if layer.norm_first else x
    y = linear(attend(linear(y, *layer.qkv)), *layer.out)
    x = x + (dropout(y, layer.dropout) if layer.dropout else y)
    if not layer.norm_first:
        x = layer_norm(x, layer.width, *layer.norm_1, layer.epsilon)
    y = layer_norm(x, layer.width, *layer.norm_2, layer.epsilon) if layer.norm_first else x
    y = linear(layer.activation(linear(y, *layer.fc1)), *layer.fc2)
    x = x + (dropout(y, layer.dropout) if layer.dropout else y)
    return x if layer.norm_first else layer_norm(x, layer.width, *layer.norm_2, layer.epsilon)


def _finish(model: OPTForCausalLM, x: torch.Tensor) -> torch.Tensor:
    """Apply the final norm and projection, if the model has them."""
    decoder = model.model.decoder
    if decoder.final_layer_norm is not None:
        x = decoder.final_layer_norm(x)
    return x if decoder.project_out is None else decoder.project_out(x)


def hidden_states(model: OPTForCausalLM, ids: torch.Tensor, layout: Layout, recompute: bool = False) -> torch.Tensor:
    """Return the final hidden states (T, D) of flat `ids` (T,); `recompute` saves memory by gradient checkpointing."""
    heads = model.config.num_attention_heads
    attention_dropout = model.config.attention_dropout if model.training else 0.0

    def attend(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = layout.pad(qkv).unflatten(-1, (3, heads, -1)).permute(2, 1, 3, 0, 4)  # (B, H, N, d) each
        if products_are_faster(qkv, layout.longest) and not attention_dropout:
            attended = attend_by_products(q, k, v)
        else:
            attended = scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=attention_dropout)
        return layout.unpad(attended.permute(2, 0, 1, 3).flatten(2))

    x = _embed(model, ids, layout.positions)
    for layer in map(_Layer.of, model.model.decoder.layers):
        if recompute:
            x = checkpoint(_apply_layer, layer, x, attend, use_reentrant=False)
        else:
            x = _apply_layer(layer, x, attend)
    return _finish(model, x)


class Cache:
    """Keys and values of a batch of `rows` sequences, in memory for `capacity` tokens that is allocated once.

    The columns are tokens, filled in blocks: `extend` adds as many columns as its longest sequence has tokens, `step`
    adds one. In rows that are shorter than their block, the remaining columns are padding and masked out.
    """

    def __init__(self, model: OPTForCausalLM, rows: int, capacity: int) -> None:
        config, weight = model.config, model.model.decoder.embed_tokens.weight
        heads = config.num_attention_heads
        shape = config.num_hidden_layers, 2, rows, heads, capacity, config.hidden_size // heads
        self.keys_values = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.token_mask = torch.ones(rows, 1, 1, capacity, dtype=torch.bool, device=weight.device)  # false: padding
        self.lengths = torch.zeros(rows, dtype=torch.long, device=weight.device)  # (B,) tokens of each row so far
        self.columns = 0  # in use
        self.has_padding = False
        self.layers = [_Layer.of(layer) for layer in model.model.decoder.layers]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be repeated."""
        self.keys_values = self.keys_values.index_select(2, rows)
        self.lengths, self.token_mask = self.lengths[rows], self.token_mask[rows]

    def visible(self) -> torch.Tensor | None:
        """Return the attention mask (B, 1, 1, columns) of a token after all columns in use; None if all are visible."""
        return self.token_mask[..., : self.columns] if self.has_padding else None


@torch.inference_mode()
def extend(model: OPTForCausalLM, ids: torch.Tensor, layout: Layout, cache: Cache) -> torch.Tensor:
    """Append flat `ids` (T,) to the rows of the cache; return the last hidden state of each row, (B, D)."""
    heads, start = model.config.num_attention_heads, cache.columns
    cache.columns += layout.longest
    block = slice(start, cache.columns)
    cache.token_mask[:, 0, 0, block] = layout.token_mask().t()
    cache.has_padding |= bool((layout.lengths < layout.longest).any())
    causal = torch.ones(layout.longest, layout.longest, dtype=torch.bool, device=ids.device).tril()
    earlier = cache.token_mask[..., :start].expand(-1, 1, layout.longest, -1)
    visible = torch.cat([earlier, causal.expand(layout.count, 1, -1, -1)], -1) if start else None
    x = _embed(model, ids, layout.positions + cache.lengths.repeat_interleave(layout.lengths))
    *layers, last = cache.layers

    def store(number: int, kv: torch.Tensor) -> None:
        """Write keys and values (N, B, 2, H, d) of a layer into the block."""
        cache.keys_values[number, :, :, :, block] = kv.permute(2, 1, 3, 0, 4)

    for number, layer in enumerate(layers):

        def attend(qkv: torch.Tensor, number: int = number) -> torch.Tensor:
            padded = layout.pad(qkv).unflatten(-1, (3, heads, -1))  # (N, B, 3, H, d)
            store(number, padded[:, :, 1:])
            q, (k, v) = padded[:, :, 0].permute(1, 2, 0, 3), cache.keys_values[number, ..., : cache.columns, :]
            attended = scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None)
            return layout.unpad(attended.permute(2, 0, 1, 3).flatten(2))

        x = _apply_layer(layer, x, attend)

    # only the last token of each row is returned, so the last layer computes keys and values alone for the other tokens
    def attend_last(qkv: torch.Tensor) -> torch.Tensor:
        kv = cache.keys_values[-1, ..., : cache.columns, :]
        return _attend_one(qkv[:, : qkv.shape[1] // 3], kv, heads, cache.visible())

    y = layer_norm(x, last.width, *last.norm_1, last.epsilon) if last.norm_first else x
    width = last.width[0]
    kv = linear(y, last.qkv[0][width:], None if last.qkv[1] is None else last.qkv[1][width:])
    store(len(layers), layout.pad(kv).unflatten(-1, (2, heads, -1)))
    cache.lengths = cache.lengths + layout.lengths
    return _finish(model, _apply_layer(last, x[layout.last], attend_last))


def _attend_one(q: torch.Tensor, kv: torch.Tensor, heads: int, visible: torch.Tensor | None) -> torch.Tensor:
    """Attend with one query a row (B, D) to the keys and values (2, B, H, columns, d) of a layer, (B, D)."""
    k, v = kv.unbind()
    q = q.reshape(len(q), heads, 1, -1)
    return scaled_dot_product_attention(q, k, v, attn_mask=visible).view(len(q), -1)


@torch.inference_mode()
def step(model: OPTForCausalLM, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Append one token (B,) to each row; return its final hidden state, (B, D)."""
    heads, rows, column = model.config.num_attention_heads, len(ids), cache.columns
    cache.columns += 1
    visible = cache.visible()
    x = _embed(model, ids, cache.lengths)
    new_columns = cache.keys_values.select(-2, column).unbind()  # views, by layer
    used_columns = cache.keys_values.narrow(-2, 0, cache.columns).unbind()
    for layer, new, kv in zip(cache.layers, new_columns, used_columns, strict=True):

        def attend(qkv: torch.Tensor, new: torch.Tensor = new, kv: torch.Tensor = kv) -> torch.Tensor:
            by_kind = qkv.view(rows, 3, heads, -1)
            new.copy_(by_kind[:, 1:].transpose(0, 1))
            return _attend_one(by_kind[:, 0], kv, heads, visible)

        x = _apply_layer(layer, x, attend)
    cache.lengths += 1
    return _finish(model, x)
