"""Embedding a corpus into an index folder that is in use."""

import shutil

import pytest

from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.runs import embedding
from retrieval_service.generations import GenerationStore
from tests import tiny


def test_an_index_refuses_another_corpus(tmp_path):
  """Its edits and older generations name passages by the rows of their own."""
  trained = tiny.trained()
  index = tmp_path / 'index'
  shutil.copytree(trained.index, index)
  passages = tmp_path / 'passages.jsonl'
  passages.write_text('{"id": "other", "title": "t", "text": "another corpus"}\n')
  store = PassageStore.open(trained.data.corpus)
  passage_store.build_corpus(
    passages,
    tmp_path / 'corpus',
    store.reader_vocabulary,
    store.retriever_vocabulary,
    progress=False,
  )
  with pytest.raises(ValueError, match='is an index of another corpus'):
    embedding.embed(
      checkpoint=str(trained.run),
      corpus=str(tmp_path / 'corpus'),
      output=str(index),
      progress=False,
    )
  folder = GenerationStore(index)
  assert folder.numbers() == [1] and folder.current() == 1
  assert not list(index.glob('embedding.*'))
  # The corpus it is of goes in as often as one likes.
  assert (
    embedding.embed(
      checkpoint=str(trained.run),
      corpus=str(trained.data.corpus),
      output=str(index),
      progress=False,
    )
    == 2
  )
