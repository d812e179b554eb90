"""OPT (Zhang et al. 2022, arXiv 2205.01068) over flat batches and static caches, on the weights of `transformers`' class.

The same numbers as `OPTForCausalLM` (tested), without its padding and its general machinery.

Shapes: T tokens, B sequences, N tokens of the longest, D width, H heads, d width of a head, S room of a cache.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import dropout, embedding, linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from transformers import OPTForCausalLM
from transformers.models.opt.modeling_opt import OPTDecoderLayer

from dmlm.model.layout import Layout

FIRST_POSITION = 2  # row of position 0 in the table: OPT's own offset

Attend = Callable[[torch.Tensor], torch.Tensor]  # (T, 3 D) of queries, keys and values to (T, D)
Fused = tuple[torch.Tensor, torch.Tensor | None]


def fused(layer: OPTDecoderLayer) -> Fused:
    """Weight (3 D, D) and bias of the projection to queries, keys and values: one product instead of three."""
    parts = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
    bias = torch.cat([part.bias for part in parts]) if parts[0].bias is not None else None
    return torch.cat([part.weight for part in parts]), bias


def _embed(model: OPTForCausalLM, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    decoder = model.model.decoder
    x = embedding(ids, decoder.embed_tokens.weight)
    if decoder.project_in is not None:
        x = decoder.project_in(x)
    return x + embedding(positions + FIRST_POSITION, decoder.embed_positions.weight)


def _layer(layer: OPTDecoderLayer, x: torch.Tensor, qkv: Fused | None, attend: Attend) -> torch.Tensor:
    """One layer, norms before (all sizes but 350m) or after; (T, D) to (T, D)."""
    before, rate = layer.do_layer_norm_before, layer.dropout if layer.training else 0.0
    y = layer.self_attn_layer_norm(x) if before else x
    y = layer.self_attn.out_proj(attend(linear(y, *(qkv or fused(layer)))))
    x = x + (dropout(y, rate) if rate else y)
    if not before:
        x = layer.self_attn_layer_norm(x)
    y = layer.final_layer_norm(x) if before else x
    y = layer.fc2(layer.activation_fn(layer.fc1(y)))
    x = x + (dropout(y, rate) if rate else y)
    return x if before else layer.final_layer_norm(x)


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
    for layer in model.model.decoder.layers:
        if recompute:
            x = checkpoint(_layer, layer, x, None, attend, use_reentrant=False)
        else:
            x = _layer(layer, x, None, attend)
    return _finish(model, x)


class Cache:
    """Keys and values of rows of different lengths, in room set aside once."""

    def __init__(self, model: OPTForCausalLM, rows: int, room: int) -> None:
        config, table = model.config, model.model.decoder.embed_tokens.weight
        heads = config.num_attention_heads
        shape = config.num_hidden_layers, 2, rows, heads, room, config.hidden_size // heads
        self.store = torch.zeros(shape, dtype=table.dtype, device=table.device)
        self.lengths = torch.zeros(rows, dtype=torch.long, device=table.device)  # (B,) tokens read so far
        self.longest = 0
        self.qkv = [fused(layer) for layer in model.model.decoder.layers]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        self.store, self.lengths = self.store.index_select(2, rows), self.lengths[rows]


@torch.inference_mode()
def extend(model: OPTForCausalLM, ids: torch.Tensor, layout: Layout, cache: Cache) -> torch.Tensor:
    """Read more tokens after what the cache holds; returns what the head reads after each row's last one, (B, D)."""
    heads, start, added = model.config.num_attention_heads, cache.lengths, layout.lengths
    fresh, until = cache.longest == 0, int((start + added).max())
    where = start.unsqueeze(1) + torch.arange(layout.longest, device=ids.device)  # (B, N) places to write
    visible = None if fresh else (torch.arange(until, device=ids.device) <= where.unsqueeze(-1)).unsqueeze(1)
    where = where.clamp(max=cache.store.shape[-2] - 1)  # padding may stand beyond the room: nobody reads it
    rows = torch.arange(layout.count, device=ids.device).unsqueeze(1)
    x = _embed(model, ids, layout.positions + start.repeat_interleave(added))
    for number, layer in enumerate(model.model.decoder.layers):
        keys, values = cache.store[number]

        def attend(qkv: torch.Tensor, keys: torch.Tensor = keys, values: torch.Tensor = values) -> torch.Tensor:
            q, k, v = layout.side_by_side(qkv).unflatten(-1, (3, heads, -1)).permute(2, 1, 3, 0, 4)
            if fresh:
                keys[:, :, :until], values[:, :, :until] = k, v
            else:
                keys[rows, :, where], values[rows, :, where] = k.transpose(1, 2), v.transpose(1, 2)
                k, v = keys[:, :, :until], values[:, :, :until]
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=fresh)
            return layout.flat(mixed.permute(2, 0, 1, 3).flatten(2))

        x = _layer(layer, x, cache.qkv[number], attend)
    cache.lengths, cache.longest = start + added, until
    return _finish(model, x[layout.last])


@torch.inference_mode()
def step(model: OPTForCausalLM, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    """One token (B,) more for each row; returns what the head reads, (B, D)."""
    heads, rows = model.config.num_attention_heads, torch.arange(len(ids), device=ids.device)
    cache.longest += 1
    visible = (torch.arange(cache.longest, device=ids.device) <= cache.lengths.unsqueeze(1))[:, None, None]
    x = _embed(model, ids, cache.lengths)
    for number, layer in enumerate(model.model.decoder.layers):
        keys, values = cache.store[number]

        def attend(qkv: torch.Tensor, keys: torch.Tensor = keys, values: torch.Tensor = values) -> torch.Tensor:
            q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(1)  # (B, H, d) each
            keys[rows, :, cache.lengths], values[rows, :, cache.lengths] = k, v
            seen = keys[:, :, : cache.longest], values[:, :, : cache.longest]
            return scaled_dot_product_attention(q.unsqueeze(2), *seen, attn_mask=visible).flatten(1)

        x = _layer(layer, x, cache.qkv[number], attend)
    cache.lengths = cache.lengths + 1
    return _finish(model, x)
