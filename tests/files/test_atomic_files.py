"""What is written is whole or not there, also when the writer is killed in between."""

import os
import signal
import subprocess
import sys

import pytest

from ralm_jax.files import atomic_files, checksums, new_folder

# Stops before the call that a test names, as a machine does that loses its power.
KILLED = """
import os, signal, sys
from ralm_jax.files import atomic_files, new_folder
target, call = sys.argv[1:]

def die(*args, **kwargs):
  os.kill(os.getpid(), signal.SIGKILL)

setattr(os, call, die)
if target.endswith('folder'):
  with new_folder.creating(target) as folder:
    open(os.path.join(folder, 'file'), 'w').write('new')
else:
  atomic_files.write(target, 'new')
"""


def killed_before(call, target):
  done = subprocess.run([sys.executable, '-c', KILLED, str(target), call], check=False)
  assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize('call', ['fsync', 'replace'])
def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path, call):
  path = tmp_path / 'file'
  atomic_files.write(path, b'old')
  killed_before(call, path)
  assert path.read_text() == 'old' and len(os.listdir(tmp_path)) == 2
  atomic_files.remove_unfinished(tmp_path)
  assert os.listdir(tmp_path) == ['file']


@pytest.mark.parametrize('call', ['fsync', 'rename'])
def test_a_folder_is_not_there_before_it_is_whole(tmp_path, call):
  path = tmp_path / 'folder'
  killed_before(call, path)
  assert not path.exists() and len(os.listdir(tmp_path)) == 1
  with new_folder.creating(path) as folder:  # Which tidies up, too.
    atomic_files.write(os.path.join(folder, 'file'), 'whole')
  assert os.listdir(tmp_path) == ['folder'] and os.listdir(path) == ['file']


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
  done = []
  for name in ('fsync', 'replace'):
    real = getattr(os, name)
    monkeypatch.setattr(os, name, lambda *a, name=name, real=real: done.append(name) or real(*a))
  atomic_files.write_json(tmp_path / 'file', {'a': 'ä'}, ensure_ascii=False)
  assert done == ['fsync', 'replace', 'fsync']
  assert (tmp_path / 'file').read_bytes() == '{"a": "ä"}\n'.encode()


def test_an_error_leaves_nothing(tmp_path):
  with pytest.raises(RuntimeError), atomic_files.replacing(tmp_path / 'file') as aside:
    aside.write_text('half')
    raise RuntimeError
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
def test_json_holds_no_numbers_that_are_none(tmp_path, value):
  path = tmp_path / 'file'
  atomic_files.write_json(path, {'x': 1.0})
  with pytest.raises(ValueError, match='not JSON compliant'):
    atomic_files.write_json(path, {'x': [value]})
  assert path.read_text() == '{"x": 1.0}\n'


def test_move(tmp_path):
  (tmp_path / 'part').write_text('x')
  (tmp_path / 'file').write_text('y')
  atomic_files.move(tmp_path / 'part', tmp_path / 'file')
  assert os.listdir(tmp_path) == ['file'] and (tmp_path / 'file').read_text() == 'x'


def test_sha256_of_a_file(tmp_path, monkeypatch):
  monkeypatch.setattr(checksums, '_CHUNK', 2)
  (tmp_path / 'abc').write_text('abc')
  read = []
  assert checksums.sha256_of(tmp_path / 'abc', read.append) == (
    'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'
  )
  assert read == [2, 1]
