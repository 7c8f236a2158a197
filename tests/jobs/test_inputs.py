"""What evaluation jobs are told, and what tells one cell's inputs from another's."""

import shutil

import pytest

from ralm_jax.checkpoints import store
from ralm_jax.jobs import config, inputs, runner as jobs, worker
from ralm_jax.jobs.inputs import Fingerprints
from tests import tiny


@pytest.fixture(scope='module')
def trained():
  return tiny.trained()


def test_checkpoints_of_one_name(trained, tmp_path):
  shutil.copytree(trained.run, tmp_path / 'run')
  with pytest.raises(ValueError, match='both called run-4'):
    config.find_checkpoints([str(trained.run), str(tmp_path / 'run')])
  found = config.find_checkpoints(
    [str(trained.run), jobs.Checkpoint(str(tmp_path / 'run'), name='copy')]
  )
  assert [one.name for one in found] == ['run-4', 'copy']
  # One of two names comes under both, and under the same one once.
  found = config.find_checkpoints([jobs.Checkpoint(str(trained.run), name=name) for name in 'aba'])
  assert [one.name for one in found] == ['a', 'b']


def test_another_checkpoint_at_the_same_path(trained, tmp_path):
  path = tmp_path / 'checkpoint_4'
  shutil.copytree(trained.run / 'checkpoint_4', path)
  fingerprint = store.fingerprint
  assert fingerprint(path) == fingerprint(trained.run / 'checkpoint_4')
  assert fingerprint(path) != fingerprint(trained.run / 'checkpoint_2')


def test_another_file_at_the_same_path(tmp_path):
  """Also while a worker lives."""
  fingerprints = Fingerprints()
  path = tmp_path / 'q.jsonl'
  path.write_text('one')
  first = fingerprints.of_files(str(path))
  path.write_text('another')
  assert fingerprints.of_files(str(path)) != first


def test_shards_of_what_comes_one_by_one():
  """Each worker gets some of a run's checkpoints, each of them one worker."""
  jobs_of = [[f'run-{i} × find × index'] for i in range(40)]
  parts = [
    [job for jobs in jobs_of for job in worker._part(jobs, f'{i}/3', by_name=True)]
    for i in range(3)
  ]
  assert all(len(part) > 5 for part in parts)
  assert sorted(sum(parts, [])) == sorted(sum(jobs_of, []))
  assert parts[1] == worker._part(sum(jobs_of, []), '1/3', by_name=True)


def test_pages_decide_cells_of_kilt_alone(tmp_path):
  """Others that were finished before pages could be named stay finished."""
  path = tmp_path / 'q.jsonl'
  path.write_text('{}')

  def choices(**options):
    task = jobs.Task('t', str(path), **options)
    return inputs.task_inputs(task, None, None, Fingerprints())['task']

  assert 'page_field' not in choices() and 'page_separators' not in choices(metrics='label')
  assert choices(record_format='kilt_nq')['page_separators'] == ''
  assert choices(metrics='kilt')['page_field'] == 'auto'
  assert choices(page_separators='_')['page_separators'] == '_'
