"""Passages on disk, tokenised once."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ralm_jax.data.corpus.passage_store import Passage, PassageStore, build_corpus

__all__ = ['Passage', 'PassageStore', 'build_corpus']


def __getattr__(name: str) -> Any:
  """Loads Arrow once a store is asked for, not for the hashes of ids."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from ralm_jax.data.corpus import passage_store

  return getattr(passage_store, name)
