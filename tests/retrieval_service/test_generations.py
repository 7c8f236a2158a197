import errno
import multiprocessing
import os
import signal

import numpy as np
import pytest

from retrieval_service import generation_writer, manifest
from retrieval_service.files import HashingFile
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions


def write(store, data, ids=None, make_current=True, **settings):
  with generation_writer.begin(store, IndexOptions(), data.shape[1], **settings) as writer:
    writer.append(ids, data)
    return writer.commit(make_current)


def test_a_generation_survives_the_disk(tmp_path, vectors):
  store = GenerationStore(tmp_path / 'new' / 'index')
  assert store.current() is None and store.open_current() is None
  data = vectors(300)
  ids = np.random.default_rng(0).permutation(10_000)[:300]
  with generation_writer.begin(store, IndexOptions('ivf_flat'), 32, {'corpus': 'a'}) as writer:
    writer.append(ids[:100], data[:100])
    writer.append(ids[100:], data[100:].astype(np.float16))
    number = writer.commit()
  generation = GenerationStore(store.directory).open_current()
  assert generation.number == number == store.current() == 1
  assert (generation.count, generation.dim) == (300, 32)
  assert generation.manifest.metadata == {'corpus': 'a'}
  assert generation.manifest.options == IndexOptions('ivf_flat')
  np.testing.assert_array_equal(generation.ids, ids)
  np.testing.assert_array_equal(generation.embeddings, data.astype(np.float16))
  result = generation.search(data[:5], 2, return_embeddings=True)
  assert result.ids[:, 0].tolist() == ids[:5].tolist()
  assert result.ids.dtype == np.int64 and result.scores.dtype == np.float32
  assert result.embeddings.dtype == np.float16
  np.testing.assert_array_equal(result.embeddings[:, 0], data[:5].astype(np.float16))
  assert not [name for name in os.listdir(store.directory) if 'tmp' in name]


def test_row_numbers_need_no_id_file(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  number = write(store, vectors(10), np.arange(10))
  assert not os.path.exists(os.path.join(store.folder(number), manifest.IDS))


@pytest.mark.parametrize(
  'ids,change,message',
  [
    ([1, 1, 2], None, 'passage id 1 occurs more than once'),
    ([1, -5, 2], None, 'must not be negative, found -5'),
    ([1, 2], None, '3 embeddings came with ids of shape'),
    ([1, 2, 3], np.nan, 'passage 2 holds a value'),
    ([1, 2, 3], 1e6, 'beyond 65504'),
  ],
)
def test_bad_vectors(tmp_path, vectors, ids, change, message):
  store = GenerationStore(tmp_path)
  data = vectors(3)
  if change is not None:
    data[1, 3] = change
  with pytest.raises(ValueError, match=message):
    write(store, data, np.array(ids))
  assert store.numbers() == [] and os.listdir(tmp_path) == ['.lock']


def test_wrong_dimension_names_both(tmp_path, vectors):
  with pytest.raises(ValueError, match=r'\[3, 8\] do not.*dimension 16'):
    with generation_writer.begin(GenerationStore(tmp_path), IndexOptions(), 16) as writer:
      writer.append(None, vectors(3, 8))


def test_metadata_must_be_json(tmp_path):
  with pytest.raises(ValueError, match='metadata must be JSON'):
    generation_writer.begin(GenerationStore(tmp_path), IndexOptions(), 4, {'x': object()})


def test_k_beyond_the_count_names_both(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  write(store, vectors(10))
  with pytest.raises(ValueError, match='k=11 .* holds 10'):
    store.open_current().search(vectors(1), 11)


@pytest.mark.parametrize(
  'name', [manifest.INDEX, manifest.EMBEDDINGS, manifest.IDS, manifest.MANIFEST]
)
def test_a_truncated_file_is_never_served(tmp_path, vectors, name):
  store = GenerationStore(tmp_path)
  write(store, vectors(10), np.arange(5, 15))
  path = os.path.join(store.folder(1), name)
  size = os.path.getsize(path)
  os.truncate(path, size - 2)  # the manifest's last brace, not its newline
  with pytest.raises(ValueError, match='build the index again') as error:
    store.open_current()
  assert path in str(error.value)
  if name != manifest.MANIFEST:
    assert f'has {size - 2} bytes; expected {size}' in str(error.value)


def test_a_changed_byte_is_found_unless_not_looked_for(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  write(store, vectors(10))
  path = os.path.join(store.folder(1), manifest.EMBEDDINGS)
  with open(path, 'r+b') as file:
    byte = file.read(1)[0]
    file.seek(0)
    file.write(bytes([byte ^ 1]))
  with pytest.raises(ValueError, match='embeddings.float16 has checksum'):
    store.open_current()
  assert store.open_current(verify_checksums=False).count == 10


@pytest.mark.parametrize('text', ['', 'generation-00000009\n', 'gener\0'])
def test_a_damaged_current_names_an_older_good_generation(tmp_path, vectors, text):
  store = GenerationStore(tmp_path)
  write(store, vectors(10))
  (tmp_path / 'CURRENT').write_text(text)
  with pytest.raises(ValueError) as error:
    GenerationStore(tmp_path).current()
  remedy = str(error.value).split('to serve it: ')[1]
  assert os.system(remedy) == 0
  assert store.current() == 1


def test_a_missing_file_names_an_older_good_generation(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  write(store, vectors(10))
  write(store, vectors(10))
  os.remove(os.path.join(store.folder(2), manifest.INDEX))
  with pytest.raises(ValueError, match='missing.*echo generation-00000001'):
    store.open_current()


def test_a_first_commit_cut_short_is_finished(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  write(store, vectors(10))
  write(store, vectors(10), make_current=False)
  os.remove(tmp_path / 'CURRENT')
  assert GenerationStore(tmp_path).current() == 1


def test_prune_keeps_current_recent_and_pinned(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  for _ in range(6):
    write(store, vectors(5))
  store.make_current(2)
  store.pin('run/a', [1, 4])
  store.pin('run:a', [3])
  store.pin('run:a', [])
  with pytest.raises(LookupError, match='no generation 9 to pin'):
    store.pin('run/a', [9])
  again = GenerationStore(tmp_path)
  assert again.pinned() == {'run/a': [1, 4]}
  assert again.prune(keep=1) == [3, 5]
  assert again.numbers() == [1, 2, 4, 6]
  assert write(again, vectors(5)) == 7


def test_a_removed_generation_stays_readable_for_who_has_it_open(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  data = vectors(50)
  write(store, data)
  opened = store.open_current()
  write(store, data)
  assert store.prune(1) == [1]
  assert opened.search(data[:1], 1).ids.tolist() == [[0]]
  with pytest.raises(LookupError, match='no generation 1; it holds'):
    store.open(1)


def test_a_damaged_pin_stops_pruning(tmp_path, vectors):
  store = GenerationStore(tmp_path)
  write(store, vectors(5))
  store.pin('a', [1])
  (tmp_path / 'pins' / 'a.json').write_text('{')
  with pytest.raises(ValueError, match='a.json is damaged'):
    store.prune(1)


@pytest.mark.parametrize('name', [manifest.EMBEDDINGS, manifest.INDEX])
def test_a_full_disk_leaves_the_former_generation(tmp_path, vectors, monkeypatch, name):
  store = GenerationStore(tmp_path)
  write(store, vectors(20))
  original = HashingFile.write

  def full(self, data):
    if self._file.name.endswith(name):
      raise OSError(errno.ENOSPC, 'No space left on device')
    return original(self, data)

  monkeypatch.setattr(HashingFile, 'write', full)
  with pytest.raises(OSError, match='former generation stays') as error:
    write(store, vectors(20))
  assert error.value.errno == errno.ENOSPC
  assert store.numbers() == [1] and store.open_current().number == 1
  assert not list(tmp_path.glob('.tmp-*'))


def _write_forever(directory, ready):
  with generation_writer.begin(GenerationStore(directory), IndexOptions(), 4) as writer:
    writer.append(None, np.ones((10, 4), np.float32))
    ready.set()
    signal.pause()


def test_leftovers_of_the_dead_are_removed_but_not_of_the_living(tmp_path):
  context = multiprocessing.get_context('spawn')
  ready = context.Event()
  process = context.Process(target=_write_forever, args=(tmp_path, ready))
  process.start()
  try:
    assert ready.wait(60)
    GenerationStore(tmp_path)
    assert len(list(tmp_path.glob('.tmp-*'))) == 1
  finally:
    process.kill()
    process.join()
  store = GenerationStore(tmp_path)
  assert not list(tmp_path.glob('.tmp-*')) and store.current() is None
