import contextlib
import os
import sys
import threading
import time

import pytest

from retrieval_service import background
from retrieval_service.client import RetrievalClient
from retrieval_service.index_builder import IndexBuilder
from retrieval_service.options import IndexOptions
from retrieval_service.server import RetrievalServer


def priorities():
  """Thread -> nice value, of this process."""
  found = {}
  for thread in os.listdir('/proc/self/task'):
    with contextlib.suppress(OSError):  # it may have ended since
      with open(f'/proc/self/task/{thread}/stat', encoding='utf-8') as file:
        found[int(thread)] = int(file.read().rpartition(')')[2].split()[16])
  return found


def test_answers_and_errors_come_back():
  assert background.run(lambda: threading.current_thread().name, 'x') == 'x_0'
  with pytest.raises(KeyError, match='y'):
    background.run(lambda: {}['y'])


@pytest.mark.skipif(sys.platform != 'linux', reason='priorities of threads')
@pytest.mark.parametrize('kind', ['pq', 'ivf_flat', 'flat'])
def test_builds_run_at_the_lowest_priority(tmp_path, vectors, monkeypatch, kind):
  """The build's own thread and those that OpenMP starts for it, no others."""
  usual = priorities()[threading.get_native_id()]
  if usual == 19:
    pytest.skip('the tests themselves run at the lowest priority')
  lowly = []
  write = IndexBuilder._write

  def observed(self, *arguments, **settings):
    own = threading.get_native_id()
    for _ in range(100):  # those of an earlier build may be ending still
      former = priorities()
      assert former.pop(own) == 19
      if set(former.values()) == {usual}:
        break
      time.sleep(0.05)
    assert set(former.values()) == {usual}
    view = write(self, *arguments, **settings)
    now = priorities()
    assert all(now.get(thread, usual) == usual for thread in former)
    lowly.extend(thread for thread, nice in now.items() if nice == 19)
    return view

  monkeypatch.setattr(IndexBuilder, '_write', observed)
  data = vectors(2000)
  with (
    RetrievalServer(tmp_path, 'localhost:0', build_threads=3) as server,
    RetrievalClient(server.address) as client,
  ):
    client.build([(None, data)], dim=32, options=IndexOptions(kind, bytes_per_vector=8))
  # A flat index takes vectors in by a plain copy.
  assert len(lowly) == (1 if kind == 'flat' else 3)
