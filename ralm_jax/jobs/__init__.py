"""Checkpoints x tasks x indexes, each cell once.

Gin files name these: `from ralm_jax import jobs`, then `jobs.run`, `jobs.Task`.
"""

import importlib

_NOUNS = {
  **dict.fromkeys(('Checkpoint', 'Index', 'JobOptions', 'Task'), 'config'),
  'TableOptions': 'results',
  'run': 'runner',
}
__all__ = list(_NOUNS)


def __getattr__(name: str):
  """Imports where a noun is used: a command's --help needs none of them."""
  if name not in _NOUNS:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_NOUNS[name]}'), name)
