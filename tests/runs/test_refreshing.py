"""Refreshing the index in mid-training: in order, and exact when killed."""

import glob
import os
import pathlib
import re
import shutil
import signal
import time

import numpy as np
import pytest

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.embedding import PassageEmbedder
from ralm_jax.runs import opening
from retrieval_service import generation_writer
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from retrieval_service.options import IndexOptions
from tests import tiny

STEPS = 8


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  return tiny.make_data(tmp_path_factory.mktemp('data'))


def _job(folder, data, **job):
  """Refreshes at 2, 4, 6 and 8, checkpoints at 3, 6 and 8."""
  retrieval = {
    'index': str(folder / 'index'),
    'refresh_index': '2-100:2',
    # Two parts: a part is 32 batches.
    'embed_batch_size': 1,
    **job.pop('retrieval', {}),
  }
  return {
    'data': str(data.folder),
    'model_dir': str(folder / 'run'),
    'steps': STEPS,
    'random_seed': 5,
    'checkpoint': {'period': 3, 'keep': 3},
    'retrieval': retrieval,
    **job,
  }


@pytest.fixture(scope='module')
def start(data, tmp_path_factory) -> pathlib.Path:
  """An index of the parameters that all runs start with."""
  folder = tmp_path_factory.mktemp('start')
  tiny.start(
    folder / 'log', [_job(folder, data, retrieval={'refresh_index': None}) | {'steps': 1}]
  ).finish()
  return folder / 'index'


@pytest.fixture(scope='module')
def refreshed(data, start, tmp_path_factory) -> pathlib.Path:
  """A run that nothing disturbs."""
  folder = tmp_path_factory.mktemp('refreshed')
  shutil.copytree(start, folder / 'index')
  tiny.start(folder / 'log', [_job(folder, data)]).finish()
  return folder


@pytest.fixture
def folder(start, tmp_path) -> pathlib.Path:
  """For another run with the same index."""
  shutil.copytree(start, tmp_path / 'index')
  return tmp_path


def _assert_same_end(folder, other, steps=STEPS) -> None:
  """Parameters, optimiser states and what waits for the next step."""
  assert not tiny.differing(*(tiny.load_checkpoint(f / 'run', steps) for f in (folder, other)))
  hosts = [
    np.load(f / 'run' / f'checkpoint_{steps}' / 'host' / 'process_00000-of-00001.npz')
    for f in (folder, other)
  ]
  assert hosts[0].files == hosts[1].files
  for name in hosts[0].files:
    if name.startswith('pending/'):
      np.testing.assert_array_equal(hosts[0][name], hosts[1][name])


def _embeddings(folder, number) -> np.ndarray:
  store = GenerationStore(folder / 'index')
  return np.asarray(store.open(number).embeddings)


def test_every_refresh_is_of_the_encoder_of_its_step(data, refreshed):
  store = GenerationStore(refreshed / 'index')
  # The one it began with, and those of the steps 2, 4, 6 and 8.
  assert store.current() == 5
  manifest = store.open_current().manifest
  run = os.path.realpath(refreshed / 'run')
  assert manifest.metadata['step'] == 8 and manifest.metadata['run'] == run
  assert manifest.metadata['run_started_with'] == 1
  corpus = PassageStore.open(data.corpus)
  assert manifest.metadata['corpus_fingerprint'] == corpus.fingerprint
  spec = Specification.load(run)
  for step, number in ((6, 4), (8, 5)):
    opened = opening.open_checkpoint(f'{run}/checkpoint_{step}')
    embedder = PassageEmbedder(
      spec.model, opened.partitioner, Assembler(spec.tokenizer, corpus), batch_size=8
    )
    expected = embedder.embed(opened.params, np.arange(len(corpus)))
    np.testing.assert_allclose(_embeddings(refreshed, number), expected, atol=5e-3)
    assert np.abs(_embeddings(refreshed, number - 1) - expected).max() > 2e-2
    # What waits in the checkpoint was searched in what the step refreshed.
    host = np.load(f'{run}/checkpoint_{step}/host/process_00000-of-00001.npz')
    assert host['pending/generation'] == number
    assert host['pending/generation_step'] == step


def test_staleness_is_recorded(refreshed):
  output = (refreshed / 'log').read_text()
  found = re.findall(r'step \d+/8 .*retrieval/staleness (\d+)', output)
  # The batches of the steps 0 to 7.
  assert list(map(int, found)) == [0, 1, 0, 1, 0, 1, 0, 1]
  assert len(re.findall(r'Refreshed the index at step \d', output)) == 4


@pytest.mark.slow
def test_killed_at_any_point_of_a_refresh(data, refreshed, folder):
  pauses = folder / 'pauses'
  output = tiny.start(
    folder / 'log',
    [
      _job(
        folder,
        data,
        pauses=str(pauses),
        kills=[
          # Before there is a checkpoint: the run begins anew each time, and
          # with the generation it began with.
          {'glob': f'{pauses}/embedding_2'},
          {'glob': f'{pauses}/uploading_2'},
          {'glob': f'{pauses}/acknowledged_2'},
          {'glob': f'{pauses}/acknowledged_4'},
          {'glob': f'{pauses}/uploading_6'},
          {'glob': f'{folder}/run/checkpoint_6'},
        ],
      )
    ],
  ).finish()
  assert output.count('KILLED') == 6, output
  assert 'begins anew: with generation 1' in output
  assert 'Resumed from checkpoint_3.' in output
  assert 'Resumed from checkpoint_6.' in output
  # Nothing that was acknowledged was built again, and nothing else remains.
  store = GenerationStore(folder / 'index')
  assert store.current() == 5
  assert output.count('Step 2 searches generation 2') == 1, output
  # A checkpoint holds the refresh of its step.
  assert output.count('Refreshed the index at step 6') == 1
  for number in (4, 5):
    np.testing.assert_array_equal(_embeddings(folder, number), _embeddings(refreshed, number))
  _assert_same_end(folder, refreshed)


def _wait_for(process, path) -> None:
  deadline = time.monotonic() + 200
  while not glob.glob(str(path)):
    assert process.popen.poll() is None, process.output()
    assert time.monotonic() < deadline, process.output()
    time.sleep(0.005)


@pytest.mark.slow
def test_killed_retrieval_process(data, refreshed, folder):
  """It dies in mid-upload; what it served is served again, then the new."""
  pauses = folder / 'pauses'
  server = LocalRetrievalServer(folder / 'index', threads=1)
  try:
    process = tiny.start(
      folder / 'log',
      [_job(folder, data, pauses=str(pauses), retrieval={'address': server.address})],
    )
    _wait_for(process, pauses / 'uploading_4')
    server.process.kill()
    server.process.wait()
    # Killed in mid-upload: another reads what was complete.
    assert GenerationStore(folder / 'index').current() == 2
    assert server.ensure_alive()
    with RetrievalClient(server.address) as client:
      assert client.status().generation in (2, 3)
    output = process.finish()
  finally:
    server.stop()
  assert 'The refresh begins again' in output
  _assert_same_end(folder, refreshed)


@pytest.mark.slow
def test_old_generation_is_served_meanwhile(data, folder):
  """By another client, while a trainer uploads, and after it was killed."""
  pauses = folder / 'pauses'
  expected = _embeddings(folder, 1)
  with LocalRetrievalServer(folder / 'index', threads=1) as server:
    process = tiny.start(
      folder / 'log',
      [_job(folder, data, pauses=str(pauses), retrieval={'address': server.address})],
    )
    with RetrievalClient(server.address) as client:
      _wait_for(process, pauses / 'uploading_2')
      (pid,) = [
        int(child)
        for path in glob.glob(f'/proc/{process.popen.pid}/task/*/children')
        for child in pathlib.Path(path).read_text().split()
      ]
      os.kill(pid, signal.SIGSTOP)
      status = client.status()
      assert status.generation == 1 and status.building
      found = client.search(expected.astype(np.float32), 3, return_embeddings=True)
      assert found.generation == 1
      np.testing.assert_array_equal(found.embeddings, expected[found.ids])
      os.kill(pid, signal.SIGKILL)
      process.popen.wait()
      deadline = time.monotonic() + 60
      while client.status().building:
        assert time.monotonic() < deadline
        time.sleep(0.05)
      assert client.status().generations == (1,)
      assert client.search(expected.astype(np.float32), 3).generation == 1


@pytest.mark.slow
def test_without_look_ahead(data, start, tmp_path):
  folders = [tmp_path / name for name in ('killed', 'plain')]
  for folder in folders:
    shutil.copytree(start, folder / 'index')
  jobs = [_job(folder, data, retrieval_lookahead=0) for folder in folders]
  jobs[0] |= {
    'pauses': str(tmp_path / 'pauses'),
    'kills': [{'glob': f'{tmp_path}/pauses/acknowledged_6'}],
  }
  output = tiny.start(tmp_path / 'log', jobs).finish()
  assert output.count('KILLED') == 1
  _assert_same_end(*folders)


@pytest.mark.slow
def test_index_with_lists(data, start, tmp_path):
  """A refresh keeps the kind of the index that is served, not the run's."""
  folders = [tmp_path / name for name in ('killed', 'plain')]
  first = GenerationStore(start).open_current()
  options = IndexOptions(index_type='ivf_flat', nlist=2, nprobe=1, rerank=0)
  jobs = []
  for folder in folders:
    store = GenerationStore(folder / 'index')
    with generation_writer.begin(store, options, first.dim, first.manifest.metadata) as writer:
      writer.append(None, np.asarray(first.embeddings))
      writer.commit()
    jobs.append(_job(folder, data, steps=4))
  jobs[0] |= {
    'pauses': str(tmp_path / 'pauses'),
    'kills': [{'glob': f'{tmp_path}/pauses/acknowledged_4'}],
  }
  output = tiny.start(tmp_path / 'log', jobs).finish()
  assert output.count('KILLED') == 1
  refreshed = GenerationStore(folders[0] / 'index').open_current()
  assert refreshed.number == 3
  assert refreshed.manifest.options == options
  _assert_same_end(*folders, steps=4)


@pytest.mark.slow
def test_frozen_first_steps(data, refreshed, folder):
  """While the encoder does not change, there is nothing to refresh."""
  output = tiny.start(folder / 'log', [_job(folder, data, freeze_retriever_steps=4)]).finish()
  assert re.findall(r'Refreshed the index at step (\d)', output) == ['6', '8']
  found = re.findall(r'step \d/8 .*retrieval/staleness (\d+)', output)
  assert list(map(int, found)) == [0, 1, 2, 3, 4, 5, 0, 1]


@pytest.mark.slow
def test_at_step_0_only_where_it_changes_something(data, tmp_path):
  schedule = {'refresh_index': '0-1:1'}
  # Built by the run itself: of the parameters it starts with.
  jobs = [
    _job(tmp_path, data, retrieval=schedule) | {'steps': 2, 'model_dir': str(tmp_path / 'first')}
  ]
  # The parameters of the next one are others.
  jobs.append(jobs[0] | {'model_dir': str(tmp_path / 'second'), 'random_seed': 6})
  output = tiny.start(tmp_path / 'log', jobs).finish()
  assert output.count('Step 0 searches generation 1') == 1
  assert output.count('Refreshed the index at step 0: generation 2') == 1


def test_schedule_without_training_the_encoder(data, tmp_path):
  for options in (
    {'retriever_optimizer': None},
    {'model': {'query_side': 'stored', 'tied_retriever': False}},
    {'model': {'query_side': 'frozen', 'tied_retriever': False}},
  ):
    with pytest.raises(ValueError, match='never gets stale.*REFRESH_INDEX'):
      tiny.train(data, tmp_path / 'run', retrieval={'refresh_index': 4}, **options)
  with pytest.raises(ValueError, match='both refresh_index and follow_current'):
    tiny.train(data, tmp_path / 'run', retrieval={'refresh_index': 4, 'follow_current': True})
  with pytest.raises(ValueError, match="'0-5'"):
    tiny.train(data, tmp_path / 'run', retrieval={'refresh_index': '0-5'})
