"""The id of an index: of folders that cannot be written, and of lost files."""

import contextlib
import os

import numpy as np
import pytest

from retrieval_service import generation_writer
from retrieval_service.edits import Edit
from retrieval_service.generations import GenerationStore
from retrieval_service.index_builder import IndexBuilder
from retrieval_service.live_index import LiveIndex
from retrieval_service.options import IndexOptions

DIM = 8
EYE = np.eye(DIM, dtype=np.float32)
NOTHING = np.zeros(0, np.int64)


class ReadOnlyStore(GenerationStore):
  """The folder as a user without write access sees it."""

  @contextlib.contextmanager
  def lock(self):
    raise PermissionError(f'{self.directory} is read-only')
    yield


@pytest.fixture
def folder(tmp_path):
  store = GenerationStore(tmp_path / 'index')
  with generation_writer.begin(store, IndexOptions(), DIM, {}) as writer:
    writer.append(np.arange(DIM), EYE)
    writer.commit()
  return tmp_path / 'index'


def _best(index):
  return int(index.view().search(EYE[:1], 1).ids[0, 0])


def test_a_reader_follows_an_index_that_gets_its_id_later(folder):
  os.remove(folder / 'INDEX_ID')  # as of one made before there were ids
  reader = LiveIndex(ReadOnlyStore(folder))
  made_up = reader.index_id
  writer = LiveIndex(GenerationStore(folder))
  assert writer.index_id != made_up
  writer.edit(Edit(np.array([50]), 2 * EYE[:1], NOTHING))
  assert _best(reader) == 50
  IndexBuilder(writer, keep_generations=2).compact()
  assert reader.reload().number == 2
  assert reader.index_id == made_up


def test_a_lost_id_is_put_back_by_an_edit_and_by_a_build(folder):
  index = LiveIndex(GenerationStore(folder))
  for change in (
    lambda: index.edit(Edit(np.array([50]), 2 * EYE[:1], NOTHING)),
    IndexBuilder(index, keep_generations=2).compact,
  ):
    os.remove(folder / 'INDEX_ID')
    change()
    assert GenerationStore(folder).index_id() == index.index_id
  assert index.current.number == 2 and _best(index) == 50
