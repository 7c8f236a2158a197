"""Released weights as the starting point of a run.

In gin, pass the function itself:

  INITIAL_PARAMS = @initial_weights.from_huggingface
  initial_weights.from_huggingface:
    reader = '/path/to/t5-v1_1-base'
    retriever = '/path/to/contriever'
"""
from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ralm_jax.interop import huggingface

Params = dict[str, Any]


def from_huggingface(
    reader: str,
    retriever: str,
    scan_layers: bool = False,
    tied_retriever: bool = True,
) -> Params:
  """Parameters of a RetrievalLM from two Hugging Face folders.

  Args:
    reader: T5 folder.
    retriever: BERT or Contriever folder.
    scan_layers: the model scans its layers (gin: SCAN_LAYERS).
    tied_retriever: one tower for both sides; else both start from the folder.

  Raises:
    FileNotFoundError, ValueError: as the loaders of `huggingface`.
  """
  for name, folder in (('reader', reader), ('retriever', retriever)):
    if not folder:
      raise ValueError(
          f'initial_weights.from_huggingface.{name} names no folder; set it '
          '(gin: READER_WEIGHTS, RETRIEVER_WEIGHTS), or INITIAL_PARAMS = None '
          'to start from random weights.'
      )
  _, reader_params = huggingface.load_t5(reader)
  _, tower = huggingface.load_bert(retriever)
  if scan_layers:
    for stack in ('encoder', 'decoder'):
      reader_params[stack] = stack_layers(reader_params[stack])
    tower = stack_layers(tower)
  if not tied_retriever:
    tower = {'query_encoder': tower, 'passage_encoder': tower}
  return {'reader': reader_params, 'retriever': tower}


def stack_layers(stack: Params) -> Params:
  """`layers_0`, `layers_1`, … of a stack to one `layers` with a leading axis."""
  depth = sum(name.startswith('layers_') for name in stack)
  rows = [stack[f'layers_{i}'] for i in range(depth)]
  rest = {k: v for k, v in stack.items() if not k.startswith('layers_')}
  return {**rest, 'layers': jax.tree.map(lambda *leaves: np.stack(leaves), *rows)}
