"""Released weights as the starting point of a run.

In gin, pass the function itself:

  INITIAL_PARAMS = @initial_weights.from_huggingface
  initial_weights.from_huggingface:
    reader = '/path/to/t5-v1_1-base'
    retriever = '/path/to/contriever'

They are read into the memory of every host; `ralm convert` makes a checkpoint
of them once, of which hosts read their shards (INITIAL_CHECKPOINT_PATH).
"""

from __future__ import annotations

import logging
from typing import Any

import jax
import numpy as np

from ralm_jax.files import named_source
from ralm_jax.interop import composing, decoder_maps, targets

Params = dict[str, Any]


def from_huggingface(
  reader: str | None,
  retriever: str | None = None,
  scan_layers: bool = False,
  tied_retriever: bool = True,
  query_encoder: str | None = None,
  passage_encoder: str | None = None,
) -> Params:
  """Parameters of a RetrievalLM from Hugging Face folders; raises as the loaders of `huggingface`.

  A retriever is a BERT, Contriever, sentence-transformers or DPR folder: one tower for both sides
  if tied, else both start from it, where `query_encoder` and `passage_encoder` name none of their
  own. The model scans its layers with `scan_layers` (gin: SCAN_LAYERS).
  """
  towers = {'query_encoder': query_encoder, 'passage_encoder': passage_encoder}
  needed: dict[str, str | None] = {'reader': reader}
  if any(towers.values()):
    if retriever or tied_retriever:
      raise ValueError(
        'initial_weights.from_huggingface: query_encoder and passage_encoder '
        'are two towers; leave retriever out and set tied_retriever = False.'
      )
    needed |= towers
  else:
    needed['retriever'] = retriever
  folders: dict[str, str] = {}
  for name, folder in needed.items():
    if not folder:
      raise ValueError(
        f'initial_weights.from_huggingface.{name} names no folder; set it (gin: READER_WEIGHTS, '
        'RETRIEVER_WEIGHTS), or INITIAL_PARAMS = None to start from random weights.'
      )
    folders[name] = named_source.resolve(folder, name)
  gathered = composing.gather(list(folders.items()))
  targets.check(gathered, allow_missing=False, allow_unused=False)
  for side, part in gathered.parts.items():
    for note in part.notes:
      logging.warning('%s of %s: %s', side, folders[side], note)
  params: Params = {side: part.read() for side, part in gathered.parts.items()}
  if scan_layers:
    read = gathered.parts['reader']
    if read.kind == 'decoder':
      params['reader'] = decoder_maps.scan(read.config, params['reader'])
    else:
      for stack in ('encoder', 'decoder'):
        params['reader'][stack] = stack_layers(params['reader'][stack])
    for side in needed.keys() - {'reader'}:
      params[side] = stack_layers(params[side])
  if 'retriever' not in params:
    params['retriever'] = {side: params.pop(side) for side in towers}
  elif not tied_retriever:
    params['retriever'] = {side: params['retriever'] for side in towers}
  return params


def stack_layers(stack: Params) -> Params:
  """`layers_0`, `layers_1`, … of a stack to one `layers` with a leading axis."""
  depth = sum(name.startswith('layers_') for name in stack)
  rows = [stack[f'layers_{i}'] for i in range(depth)]
  rest = {k: v for k, v in stack.items() if not k.startswith('layers_')}
  return {**rest, 'layers': jax.tree.map(lambda *leaves: np.stack(leaves), *rows)}
