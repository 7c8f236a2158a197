"""What is on the disk after an edit, whatever happens around it."""

import contextlib
import errno
import logging
import os
import resource
import signal

import numpy as np
import pytest

from retrieval_service import edit_log
from retrieval_service.edit_log import EditLog
from retrieval_service.edits import Edit


def edit(ids=(), delete_ids=(), value=0.0, dim=4, **fields):
  ids = np.array(ids, np.int64)
  return Edit(
    ids, np.full((len(ids), dim), value, np.float16), np.array(delete_ids, np.int64), **fields
  )


def state(log):
  """All that a log comes to: id -> (edit, vector or None), and metadata."""
  last = log.last_edits()
  return (
    {
      int(passage): (
        int(sequence),
        log.vectors(np.array([passage]), dim)[0].tolist() if dim else None,
      )
      for passage, sequence, dim in zip(last.ids, last.sequences, last.dims)
    },
    dict(log.metadata),
    log.last,
    log.next_id,
  )


def fill(directory):
  log = EditLog(directory)
  log.append(edit([5, 7], value=1, metadata={'a': 1, 'b': 1}))
  log.append(edit([9], delete_ids=[5], value=2, edit_id='x'))
  log.append(edit(delete_ids=[3], metadata={'b': 2}))
  return log


def test_a_log_comes_to_what_was_done_last_to_each_id(tmp_path):
  log = fill(str(tmp_path))
  expected = (
    {5: (2, None), 7: (1, [1.0] * 4), 9: (2, [2.0] * 4), 3: (3, None)},
    {'a': (1, 1), 'b': (3, 2)},
    3,
    10,
  )
  assert state(log) == expected
  again = EditLog(str(tmp_path))
  assert state(again) == expected
  assert again.find('x').sequence == 2 and again.find('x').ids.tolist() == [9]
  assert again.find('y') is None and again.find('') is None


def test_an_index_without_edits_has_no_log(tmp_path):
  log = EditLog(str(tmp_path))
  assert state(log) == ({}, {}, 0, 0) and not os.listdir(tmp_path)


@pytest.mark.parametrize(
  'last', [edit([1, 2], [3], value=5, metadata={'c': 1}), edit([1], value=0), edit(delete_ids=[9])]
)
def test_a_record_cut_at_any_byte_leaves_the_edits_before_it(tmp_path, last, caplog):
  log = fill(str(tmp_path))
  before, begin = state(log), os.path.getsize(log.path)
  log.append(last)
  with open(log.path, 'rb') as file:
    whole = file.read()
  for end in range(begin, len(whole)):
    # A file system may also have made room that was never written.
    for rest in (b'', bytes(len(whole) - end)):
      if rest and end > len(whole) - 16:
        continue  # half a checksum: no file system cuts so finely
      with open(log.path, 'wb') as file:
        file.write(whole[:end] + rest)
      torn = EditLog(str(tmp_path))
      assert state(torn) == before
      torn.catch_up(repair=True)
      assert os.path.getsize(log.path) == begin
      assert torn.append(edit([77], value=7)).sequence == 4
      assert EditLog(str(tmp_path)).last == 4
  assert 'never completed, and so never acknowledged' in caplog.text


def test_a_reader_leaves_a_record_in_the_making_alone(tmp_path):
  log = fill(str(tmp_path))
  with open(log.path, 'ab') as file:
    file.write(b'EDIT')
  size = os.path.getsize(log.path)
  assert EditLog(str(tmp_path)).catch_up() == []
  assert os.path.getsize(log.path) == size


def test_a_damaged_record_is_an_error_with_a_remedy(tmp_path):
  log = fill(str(tmp_path))
  before, begin = state(log), os.path.getsize(log.path)
  log.append(edit([1], value=5))
  with open(log.path, 'rb') as file:
    whole = file.read()
  first = len(edit_log._FORMAT)
  for at in (*range(first, begin, 7), *range(begin, len(whole), 3)):
    with open(log.path, 'wb') as file:
      file.write(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
    with pytest.raises(ValueError, match='edits.log is damaged at') as error:
      EditLog(str(tmp_path))
  # The last one is in the record of edit 4: what the message says leaves 3.
  assert os.system(str(error.value).split('all later ones: ')[1]) == 0
  assert state(EditLog(str(tmp_path))) == before


def test_another_file_is_not_taken_for_a_log(tmp_path):
  (tmp_path / 'edits.log').write_text('Dear diary')
  with pytest.raises(ValueError, match='no log of edits'):
    EditLog(str(tmp_path))


@contextlib.contextmanager
def file_size_limit(size):
  """The system refuses to write beyond; a write in mid-way is cut short."""
  former = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, former)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_write_cut_short_leaves_the_log_as_it_was(tmp_path):
  log = fill(str(tmp_path))
  before, size = state(log), os.path.getsize(log.path)
  with file_size_limit(size + 50):
    with pytest.raises(OSError, match='Nothing of it holds') as error:
      log.append(edit(range(100), value=5))
  assert error.value.errno == errno.EFBIG
  assert os.path.getsize(log.path) == size
  assert state(log) == before == state(EditLog(str(tmp_path)))
  log.append(edit([100], value=6))
  assert state(log) == state(EditLog(str(tmp_path))) != before


def test_a_full_disk_is_said_so(tmp_path, monkeypatch):
  log = fill(str(tmp_path))
  before = state(log)

  def full(descriptor):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(edit_log.os, 'fsync', full)
    with pytest.raises(OSError, match='no space left for an edit of 1 vectors'):
      log.append(edit([100], value=6))
  assert state(log) == before == state(EditLog(str(tmp_path)))
  assert log.append(edit([100], value=6)).sequence == 4


def test_two_writers_catch_up_with_each_other(tmp_path, monkeypatch):
  one = fill(str(tmp_path))
  other = EditLog(str(tmp_path))
  one.append(edit([20], value=3))
  (seen,) = other.catch_up()
  assert seen.sequence == 4 and seen.ids.tolist() == [20]
  other.append(edit([21], value=4))
  assert [e.sequence for e in one.catch_up()] == [5]
  assert state(one) == state(other)
  # Where one has rewritten the log, the other reads it anew.
  monkeypatch.setattr(edit_log, '_REWRITE_BYTES', 0)
  monkeypatch.setattr(edit_log, '_RECENT', 1)
  for value in range(9):
    one.append(edit([20], value=value))
  one._rewrite_at = 0
  assert one.tidy()
  assert other.catch_up() is None
  assert state(one) == state(other) == state(EditLog(str(tmp_path)))


def test_void_edits_are_rewritten_away(tmp_path, monkeypatch):
  monkeypatch.setattr(edit_log, '_REWRITE_BYTES', 5000)
  monkeypatch.setattr(edit_log, '_RECENT', 3)
  log = EditLog(str(tmp_path))
  rng = np.random.default_rng(0)
  sizes, rewritten = [], 0
  for number in range(300):
    ids = rng.choice(10, 3, replace=False)
    log.append(
      edit(
        ids[:2], ids[2:], value=number, edit_id=f'e{number}', metadata={f'key{number % 3}': number}
      )
    )
    before = state(log)
    rewritten += log.tidy()
    assert state(log) == before
    sizes.append(os.path.getsize(log.path))
  assert state(EditLog(str(tmp_path))) == state(log)
  assert rewritten > 3 and max(sizes) < 6000 and log.last == 300
  # The last edits are known by name after that, too.
  assert log.tidy() or EditLog(str(tmp_path)).find('e299').sequence == 300
  assert os.listdir(tmp_path) == ['edits.log']


def test_a_rewrite_that_fails_changes_nothing(tmp_path, monkeypatch, caplog):
  log = fill(str(tmp_path))
  log.append(edit([7], value=9))
  monkeypatch.setattr(edit_log, '_RECENT', 0)
  log._rewrite_at, log._needed_bytes, before = 0, 0, state(log)

  def full(file):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(edit_log.files, 'flush_to_disk', full)
    with caplog.at_level(logging.WARNING):
      assert not log.tidy()
  assert 'cannot be made smaller' in caplog.text
  assert os.listdir(tmp_path) == ['edits.log']
  assert state(log) == before == state(EditLog(str(tmp_path)))


def test_numbers_go_on_where_a_removed_log_ended(tmp_path):
  fill(str(tmp_path))
  os.remove(tmp_path / 'edits.log')
  log = EditLog(str(tmp_path), floor=3)
  assert log.last == 3 and log.append(edit([1])).sequence == 4
