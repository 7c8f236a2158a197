"""Which foreign tensor is which parameter of a decoder-only model; see `tensor_maps`.

Hugging Face's names and GGUF's. Both have `[out, in]` matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import re

import flax.traverse_util
import numpy as np

from ralm_jax.interop.tensor_maps import Entry, Params
from ralm_jax.models.decoder_config import DecoderConfig


@dataclasses.dataclass(frozen=True)
class Names:
  """A format's names, all of which end in `.weight` or `.bias`."""

  embedding: str
  decoder_norm: str
  head: str
  layer: str  # Before those of a layer; `{}` is its number.
  in_layer: Mapping[str, str]
  norm_offset: float = 0.0  # Ours are what multiplies.
  rows_in_pairs: bool = False  # Those of queries and keys, see `Entry.pairs_of`.


_SHARED = {'attention/query': 'q', 'attention/key': 'k', 'attention/value': 'v'}
_LLAMA = {
  'pre_attention_norm': 'input_layernorm',
  **{ours: f'self_attn.{theirs}_proj' for ours, theirs in _SHARED.items()},
  'attention/out': 'self_attn.o_proj',
  'attention/query_norm': 'self_attn.q_norm',
  'attention/key_norm': 'self_attn.k_norm',
  'pre_mlp_norm': 'post_attention_layernorm',
  'mlp/wi_0': 'mlp.gate_proj',
  'mlp/wi_1': 'mlp.up_proj',
  'mlp/wo': 'mlp.down_proj',
}
_GEMMA = {
  'post_attention_norm': 'post_attention_layernorm',
  'pre_mlp_norm': 'pre_feedforward_layernorm',
  'post_mlp_norm': 'post_feedforward_layernorm',
}
_GGUF = {
  'pre_attention_norm': 'attn_norm',
  **{ours: f'attn_{theirs}' for ours, theirs in _SHARED.items()},
  'attention/out': 'attn_output',
  'attention/query_norm': 'attn_q_norm',
  'attention/key_norm': 'attn_k_norm',
  'post_attention_norm': 'post_attention_norm',
  'pre_mlp_norm': 'ffn_norm',
  'mlp/wi_0': 'ffn_gate',
  'mlp/wi_1': 'ffn_up',
  'mlp/wo': 'ffn_down',
  'post_mlp_norm': 'post_ffw_norm',
}


def huggingface_names(
  config: DecoderConfig, prefix: str = 'model.', head: str = 'lm_head'
) -> Names:
  """Of a Llama, or where it has post-norms of a Gemma, whose norms are theirs plus one."""
  gemma = config.post_norms
  return Names(
    embedding=f'{prefix}embed_tokens',
    decoder_norm=f'{prefix}norm',
    head=head,
    layer=f'{prefix}layers.{{}}.',
    in_layer=_LLAMA | (_GEMMA if gemma else {}),
    norm_offset=1.0 if gemma else 0.0,
  )


def gguf_names(architecture: str) -> Names:
  """Of llama.cpp, which orders Llama's queries and keys as Meta did and keeps Gemma's norms + 1."""
  return Names(
    embedding='token_embd',
    decoder_norm='output_norm',
    head='output',
    layer='blk.{}.',
    in_layer=_GGUF,
    rows_in_pairs=architecture == 'llama',
  )


def entries(config: DecoderConfig, names: Names) -> list[Entry]:
  """The map of a decoder-only model, in the order in which it computes."""
  emb, heads, kv_heads = config.emb_dim, config.num_heads, config.num_kv_heads
  found: list[Entry] = []

  def norm(path: str, name: str, size: int = emb) -> None:
    found.append(Entry(f'{path}/scale', f'{name}.weight', (size,), offset=names.norm_offset))

  def dense(path: str, name: str, shape: tuple[int, int], bias: bool = False, pairs: int = 0):
    kernel = Entry(f'{path}/kernel', f'{name}.weight', shape, transpose=True, pairs_of=pairs)
    found.append(kernel)
    if bias:
      found.append(Entry(f'{path}/bias', f'{name}.bias', shape[1:], pairs_of=pairs))

  embedding = (config.vocab_size, emb)
  found.append(Entry('token_embedder/embedding', f'{names.embedding}.weight', embedding))
  for i in range(config.num_decoder_layers):
    ours = {part: f'decoder/layers_{i}/{part}' for part in names.in_layer}
    theirs = {part: names.layer.format(i) + name for part, name in names.in_layer.items()}
    both = {part: (ours[part], theirs[part]) for part in ours}
    norm(*both['pre_attention_norm'])
    for part, count in (('query', heads), ('key', kv_heads), ('value', kv_heads)):
      pairs = count if names.rows_in_pairs and part != 'value' else 0
      shape = (emb, count * config.head_dim)
      dense(*both[f'attention/{part}'], shape, config.attention_bias, pairs)
    if config.query_key_norm:
      for part in ('query_norm', 'key_norm'):
        norm(*both[f'attention/{part}'], config.head_dim)
    dense(*both['attention/out'], (heads * config.head_dim, emb))
    if config.post_norms:
      norm(*both['post_attention_norm'])
    norm(*both['pre_mlp_norm'])
    for part in ('mlp/wi_0', 'mlp/wi_1'):
      dense(*both[part], (emb, config.mlp_dim))
    dense(*both['mlp/wo'], (config.mlp_dim, emb))
    if config.post_norms:
      norm(*both['post_mlp_norm'])
  norm('decoder/decoder_norm', names.decoder_norm)
  if not config.logits_via_embedding:
    dense('logits_dense', names.head, (emb, config.vocab_size))
  return found


_LAYER = re.compile(r'^decoder/layers_(\d+)(?=/)')
_SCANNED = re.compile(r'^decoder/(?:layers/layer|remainder)_(\d+)(?=/)')


def scanned(config: DecoderConfig, path: str) -> tuple[str, int | None]:
  """Where a parameter of an unscanned tree is in the scanned one: path, and row of its stack.

  Whole repetitions of the layer pattern are scanned, what is left over is not.
  """
  match = _LAYER.match(path)
  if match is None:
    return path, None
  pattern = len(config.layer_pattern) or 1
  row, layer = divmod(int(match[1]), pattern)
  if row < config.num_decoder_layers // pattern:
    return _LAYER.sub(f'decoder/layers/layer_{layer}', path), row
  return _LAYER.sub(f'decoder/remainder_{layer}', path), None


def unscanned(config: DecoderConfig, path: str, row: int | None) -> str:
  """The path of a row of a stack, or of a parameter without one, in the unscanned tree."""
  match = _SCANNED.match(path)
  if match is None:
    return path
  pattern = len(config.layer_pattern) or 1
  repetition = config.num_decoder_layers // pattern if row is None else row
  return _SCANNED.sub(f'decoder/layers_{repetition * pattern + int(match[1])}', path)


def scan(config: DecoderConfig, params: Params) -> Params:
  """The scanned tree of an unscanned one."""
  rows: dict[str, list[np.ndarray]] = {}
  found: dict[str, np.ndarray] = {}
  # Layers in turn, so that rows come in order.
  flat = flax.traverse_util.flatten_dict(params, sep='/')
  for entry in entries(config, huggingface_names(config)):
    path, row = scanned(config, entry.path)
    if row is None:
      found[path] = flat[entry.path]
    else:
      rows.setdefault(path, []).append(flat[entry.path])
  found |= {path: np.stack(arrays) for path, arrays in rows.items()}
  tree: Params = flax.traverse_util.unflatten_dict(found, sep='/')
  return tree
