"""Passages on disk, tokenised once."""

from ralm_jax.data.corpus.passage_store import PassageStore, build_corpus
from ralm_jax.data.corpus.passages import Passage

__all__ = ['Passage', 'PassageStore', 'build_corpus']
