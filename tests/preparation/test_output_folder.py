"""Outputs that take the place of earlier ones."""

import os
import pathlib
import subprocess
import sys

import pytest

from ralm_jax.preparation import output_folder, writing

# Overwrites an output, and dies right after something got a name that begins
# so, or while it fills the folder.
_KILLED = """
import os, sys
from ralm_jax.preparation import output_folder, writing
output, dies_at = sys.argv[1:]
rename = os.rename
def renaming(one, other):
  rename(one, other)
  if os.path.basename(other).startswith(dies_at):
    os._exit(9)
os.rename = renaming
with output_folder.creating(output, True) as folder:
  writing.write_manifest(folder, {'format': writing.FORMAT, 'benchmark': 'x', 'n': 2, 'files': []})
  if dies_at == 'filling':
    os._exit(9)
"""


def _manifest(n):
  return {'format': writing.FORMAT, 'benchmark': 'x', 'n': n, 'files': []}


def _make(output, n, overwrite=False):
  with output_folder.creating(str(output), overwrite) as folder:
    writing.write_manifest(folder, _manifest(n))


def _number(output):
  manifest = writing.read_manifest(str(output))
  return manifest and manifest['n']


def test_only_its_own_folders_are_removed(tmp_path):
  out = tmp_path / 'nq'
  _make(out, 1)
  mine = [f'nq{ending}' for ending in ('.old', '.new')] + [
    '.nq.replaced-of-mine',
    '.nq.replaced',
    '.nqx.replaced-1-00000000',
  ]
  for name in mine:
    _make(tmp_path / name, 0)
  _make(out, 2, overwrite=True)
  output_folder.recover(str(out))
  assert _number(out) == 2
  assert sorted(os.listdir(tmp_path)) == sorted([*mine, 'nq'])
  # Nor is what somebody has put into the output.
  (out / 'notes').mkdir()
  (out / 'notes/thesis.txt').write_text('years of work')
  with pytest.raises(FileExistsError, match='notes/thesis.txt .*move it away'):
    _make(out, 3, overwrite=True)
  with pytest.raises(FileExistsError, match='exists already'):
    _make(out, 3)
  assert _number(out) == 2 and (out / 'notes/thesis.txt').exists()


@pytest.mark.parametrize(
  'dies_at, there, n',
  [
    ('filling', 1, 1),
    ('.nq.made-', 1, 1),  # It was whole, but nothing was replaced yet.
    ('.nq.replaced-', None, 2),  # Between the two.
    ('nq', 2, 2),
  ],
)
def test_a_killed_process_is_recovered_from(tmp_path, dies_at, there, n):
  out = tmp_path / 'nq'
  _make(out, 1)
  root = pathlib.Path(__file__).parents[2]
  died = subprocess.run([sys.executable, '-c', _KILLED, str(out), dies_at], cwd=root, check=False)
  assert died.returncode == 9
  assert _number(out) == there and len(os.listdir(tmp_path)) == 2
  output_folder.recover(str(out))
  assert _number(out) == n and os.listdir(tmp_path) == ['nq']


def test_the_earlier_output_comes_back_alone(tmp_path):
  """As where somebody has removed the other one."""
  _make(tmp_path / '.nq.replaced-1-0123abcd', 1)
  (tmp_path / 'nq').mkdir()  # Nobody would miss it.
  output_folder.recover(str(tmp_path / 'nq'))
  assert _number(tmp_path / 'nq') == 1 and os.listdir(tmp_path) == ['nq']


def test_what_another_process_fills_is_left_alone(tmp_path):
  out = tmp_path / 'nq'
  _make(out, 1)
  with output_folder.creating(str(out), True) as folder:
    output_folder.recover(str(out))
    writing.write_manifest(folder, _manifest(2))
  assert _number(out) == 2 and os.listdir(tmp_path) == ['nq']


def test_a_failed_rename_is_taken_back(tmp_path, monkeypatch):
  out = tmp_path / 'nq'
  _make(out, 1)
  rename = os.rename

  def failing(one, other):
    if other == str(out) and '.made-' in one:
      raise OSError(28, 'no space')
    rename(one, other)

  monkeypatch.setattr(os, 'rename', failing)
  with pytest.raises(OSError, match='no space'):
    _make(out, 2, overwrite=True)
  assert _number(out) == 1 and os.listdir(tmp_path) == ['nq']
