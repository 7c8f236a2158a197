"""Files as users name them: one rule for passages and questions."""

import os

import pytest

from ralm_jax.files import input_files


def names(paths):
  return [os.path.basename(path) for path in paths]


@pytest.fixture
def folder(tmp_path):
  for name in ('b.jsonl', 'a.jsonl', 'odd[1].jsonl'):
    (tmp_path / name).touch()
  (tmp_path / 'folder.jsonl').mkdir()
  return tmp_path


def test_globs_and_order(folder):
  expand = input_files.expand_inputs
  assert names(expand(folder / '*.jsonl')) == ['a.jsonl', 'b.jsonl', 'odd[1].jsonl']
  assert names(expand([folder / 'b.jsonl', str(folder / '*.jsonl')])) == [
    'b.jsonl',
    'a.jsonl',
    'odd[1].jsonl',
  ]
  assert expand(folder / 'odd[1].jsonl') == [str(folder / 'odd[1].jsonl')]
  assert expand(iter([folder / 'a.jsonl'])) == [str(folder / 'a.jsonl')]


def test_a_file_counts_once_whatever_it_is_called(folder, monkeypatch):
  (folder / 'c.jsonl').symlink_to(folder / 'b.jsonl')
  monkeypatch.setenv('HOME', str(folder))
  assert names(
    input_files.expand_inputs(
      [folder / '.' / 'b.jsonl', folder / 'c.jsonl', '~/b.jsonl', '~/a.jsonl']
    )
  ) == ['b.jsonl', 'a.jsonl']


def test_what_is_not_there(folder):
  for inputs, kind, message in [
    (folder / 'gone.jsonl', FileNotFoundError, 'gone.jsonl: no such file'),
    (folder / '*.nothing', FileNotFoundError, r'\*.nothing: no file matches'),
    ([folder / 'a.jsonl', folder], ValueError, f'{folder}: a folder; write '),
    ([], ValueError, 'no file was named'),
  ]:
    with pytest.raises(kind, match=message):
      input_files.expand_inputs(inputs)
