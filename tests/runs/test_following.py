"""A second job that publishes the index of each checkpoint of a run."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from ralm_jax import cli
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval import embedding
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.embedding import PassageEmbedder
from ralm_jax.runs import following, opening
from ralm_jax.training.partitioning import Partitioner
from retrieval_service import generation_writer
from retrieval_service.client import RetrievalClient
from retrieval_service.generations import GenerationStore
from retrieval_service.local import LocalRetrievalServer
from tests import tiny


@pytest.fixture(scope='module')
def trained() -> tiny.Trained:
  return tiny.trained()


@pytest.fixture
def index(trained, tmp_path):
  """An index of the parameters the run began with, of no known run."""
  folder = tmp_path / 'index'
  store = GenerationStore(folder)
  first = GenerationStore(trained.index).open_current()
  metadata = dict(first.manifest.metadata, run='/another', step=50)
  with generation_writer.begin(store, first.manifest.options, first.dim, metadata) as writer:
    writer.append(None, np.asarray(first.embeddings))
    writer.commit()
  return folder


def _one_device():
  return Partitioner(devices=jax.devices()[:1])


def _refresh(run, **options):
  return following.refresh(
    model_dir=str(run),
    **{'poll_s': 0.05, 'batch_size': 8, 'progress': False, 'partitioner': _one_device(), **options},
  )


def _assert_is_of(index, checkpoint):
  """The current generation holds what the checkpoint's encoder makes."""
  current = GenerationStore(index).open_current()
  opened = opening.open_checkpoint(checkpoint, _one_device())
  metadata = current.manifest.metadata
  store = PassageStore.open(metadata['corpus'])
  embedder = PassageEmbedder(
    opened.spec.model, opened.partitioner, Assembler(opened.spec.tokenizer, store), batch_size=8
  )
  expected = embedder.embed(opened.params, np.arange(len(store)))
  np.testing.assert_allclose(current.embeddings, expected, atol=2e-3)
  assert metadata['run'] == os.path.realpath(opened.directory)
  assert metadata['step'] == opened.step
  assert metadata['encoder_fingerprint'] == embedding.retriever_fingerprint(opened.params)


def test_once_into_a_folder(trained, index, caplog):
  caplog.set_level('INFO')
  assert _refresh(trained.run, index=str(index), once=True) == 1
  _assert_is_of(index, trained.run / 'checkpoint_4')
  assert GenerationStore(index).current() == 2
  assert 'checkpoint_4 is generation 2: 40 passages' in caplog.text
  # What is served already is passed over.
  assert _refresh(trained.run, index=str(index), once=True) == 0
  assert _refresh(trained.run, index=str(index), stop_after_steps=4) == 0
  assert GenerationStore(index).current() == 2


def test_old_generations_go_but_for_pinned_ones(trained, index, tmp_path):
  run = _copy(trained.run, tmp_path / 'run', 2)
  store = GenerationStore(index)
  store.pin('another run', [1])
  _refresh(run, index=str(index), once=True)
  shutil.copytree(trained.run / 'checkpoint_4', run / 'checkpoint_4')
  _refresh(run, index=str(index), once=True, keep_generations=1)
  assert store.numbers() == [1, 3]


def _copy(run, target, *steps):
  """A run with some of the checkpoints only."""
  target.mkdir()
  shutil.copy(run / 'model.json', target)
  shutil.copytree(run / 'vocabularies', target / 'vocabularies')
  for step in steps:
    shutil.copytree(run / f'checkpoint_{step}', target / f'checkpoint_{step}')
  return target


class Follower(threading.Thread):
  """`ralm refresh` in a thread."""

  def __init__(self, run, **options):
    super().__init__(daemon=True)
    self._run, self._options = run, options
    self.published = self.error = None
    self.start()

  def run(self):
    try:
      self.published = _refresh(self._run, **self._options)
    except Exception as error:  # pylint: disable=broad-except
      self.error = error

  def finish(self):
    self.join(200)
    assert not self.is_alive()
    if self.error:
      raise self.error
    return self.published


def _until(condition):
  deadline = time.monotonic() + 100
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def test_follows_a_run_through_a_restart_of_the_process(trained, index, tmp_path, caplog):
  """From before its first checkpoint; the retrieval process dies meanwhile."""
  caplog.set_level('INFO')
  run = tmp_path / 'run'
  with LocalRetrievalServer(index, threads=1) as server:
    with RetrievalClient(server.address) as client:
      follower = Follower(
        run, retrieval_address=server.address, stop_after_steps=4, retry_for_s=0.5
      )
      _until(lambda: 'Waiting for a first checkpoint' in caplog.text)
      _copy(trained.run, run)
      shutil.copytree(trained.run / 'checkpoint_2', tmp_path / 'aside')
      (tmp_path / 'aside').rename(run / 'checkpoint_2')
      _until(lambda: client.status().generation == 2)
      _assert_is_of(index, run / 'checkpoint_2')
      _until(lambda: 'waiting for one of step 3 or later' in caplog.text)
      server.process.kill()
      server.process.wait()
      shutil.copytree(trained.run / 'checkpoint_4', tmp_path / 'aside')
      (tmp_path / 'aside').rename(run / 'checkpoint_4')
      _until(lambda: 'checkpoint_4 is not published yet' in caplog.text)
      server.ensure_alive()
      assert follower.finish() == 2
      status = client.status()
  assert status.generation == 3
  _assert_is_of(index, run / 'checkpoint_4')
  # Waiting is said once, not at each look.
  assert caplog.text.count('Waiting for a first checkpoint') == 1


def test_every_so_many_steps(trained, index, tmp_path, caplog):
  caplog.set_level('INFO')
  run = _copy(trained.run, tmp_path / 'run', 2)
  follower = Follower(run, index=str(index), every_steps=100, stop_after_steps=4)
  _until(lambda: 'waiting for one of step 102 or later' in caplog.text)
  shutil.copytree(trained.run / 'checkpoint_4', tmp_path / 'aside')
  (tmp_path / 'aside').rename(run / 'checkpoint_4')
  # The last one is published however few steps it took.
  assert follower.finish() == 2
  _assert_is_of(index, run / 'checkpoint_4')


# Orbax leaves the event loop of a failed reading to the garbage collector.
_UNCLOSED = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


@_UNCLOSED
def test_a_checkpoint_is_removed_while_it_is_read(trained, index, tmp_path, monkeypatch, caplog):
  caplog.set_level('INFO')
  run = _copy(trained.run, tmp_path / 'run', 2)
  load = following.load_retriever
  seen = []

  def remove_and_load(directory, step, *args):
    seen.append(step)
    if step == 2:
      shutil.copytree(trained.run / 'checkpoint_4', tmp_path / 'aside')
      (tmp_path / 'aside').rename(run / 'checkpoint_4')
      # Half of it is gone already.
      shutil.rmtree(run / 'checkpoint_2' / 'state' / 'd', ignore_errors=True)
      shutil.rmtree(run / 'checkpoint_2' / 'state' / 'ocdbt.process_0')
    return load(directory, step, *args)

  monkeypatch.setattr(following, 'load_retriever', remove_and_load)
  assert _refresh(run, index=str(index), stop_after_steps=4) == 1
  assert seen == [2, 4]
  assert 'checkpoint_2 cannot be read' in caplog.text
  _assert_is_of(index, run / 'checkpoint_4')
  gc.collect()


@_UNCLOSED
def test_a_damaged_checkpoint_ends_it(trained, index, tmp_path):
  run = _copy(trained.run, tmp_path / 'run', 2)
  shutil.rmtree(run / 'checkpoint_2' / 'state' / 'ocdbt.process_0')
  with pytest.raises(ValueError, match='checkpoint_2 cannot be read') as raised:
    _refresh(run, index=str(index), stop_after_steps=4)
  assert len(str(raised.value)) < 500  # not TensorStore's pages
  del raised
  gc.collect()
  assert GenerationStore(index).current() == 1


def test_the_reader_is_not_read(trained):
  spec = opening.open_checkpoint(trained.run, _one_device()).spec
  params = following.load_retriever(str(trained.run), 4, spec.model, _one_device())
  assert params.keys() == {'retriever'}
  whole = opening.open_checkpoint(trained.run, _one_device()).params
  assert not tiny.differing(params['retriever'], whole['retriever'])


@pytest.mark.parametrize(
  'changes,error,message',
  [
    ({'once': True, 'run': 'nowhere'}, FileNotFoundError, 'does not exist'),
    ({'index': 'nowhere'}, FileNotFoundError, 'holds no index'),
    ({'index': None}, ValueError, 'Give either the INDEX'),
    ({'every_steps': 0}, ValueError, 'every_steps must be'),
    (
      {'index': None, 'retrieval_address': 'localhost:1', 'retry_for_s': 0.2},
      ConnectionError,
      'cannot be reached',
    ),
  ],
)
def test_what_cannot_be(trained, index, changes, error, message):
  changes = {'index': str(index), 'run': str(trained.run), **changes}
  with pytest.raises(error, match=message):
    _refresh(changes.pop('run'), **changes)


def test_interrupted_at_the_terminal(trained, index, tmp_path):
  """Ctrl-C ends the command with one line, and it goes on where it was."""
  run = _copy(trained.run, tmp_path / 'run', 2)
  log = tmp_path / 'log'
  # As at a terminal, also where the tests run in the background, which ignores
  # the signal.
  start = (
    'import signal, sys; from ralm_jax import cli; '
    'signal.signal(signal.SIGINT, signal.default_int_handler); '
    'sys.exit(cli.main(sys.argv[1:]))'
  )
  with open(log, 'wb') as file:
    process = subprocess.Popen(
      [
        sys.executable,
        '-c',
        start,
        'refresh',
        '--model_dir',
        run,
        '--index',
        index,
        '--poll_s',
        '0.1',
      ],
      env=tiny.environment(1),
      stdout=file,
      stderr=file,
    )
  try:
    _until(lambda: b'waiting for one of' in log.read_bytes() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
  finally:
    process.kill()
  text = log.read_text()
  assert 'interrupted; the same command goes on' in text
  assert 'Traceback' not in text, text
  assert GenerationStore(index).current() == 2
  shutil.copytree(trained.run / 'checkpoint_4', run / 'checkpoint_4')
  assert cli.main(['refresh', '--model_dir', str(run), '--index', str(index), '--once']) == 0
  _assert_is_of(index, run / 'checkpoint_4')


@pytest.mark.slow
@pytest.mark.parametrize('served', ['own', 'address'])
def test_training_follows_what_is_published(served, trained, tmp_path):
  """Both jobs at work; the run searches what the other one publishes."""
  index, run, steps = tmp_path / 'index', tmp_path / 'run', 20
  shutil.copytree(trained.index, index)
  job = {
    'data': str(trained.data.folder),
    'model_dir': str(run),
    'checkpoint': {'period': 4, 'keep': 2},
  }
  with LocalRetrievalServer(index, threads=1) as server:
    if served == 'address':
      where, retrieval = {'retrieval_address': server.address}, {'address': server.address}
    else:
      where, retrieval = {'index': str(index)}, {'index': str(index)}
    follower = Follower(run, stop_after_steps=steps, **where)
    output = tiny.start(
      tmp_path / 'log', [job | {'steps': steps, 'retrieval': {**retrieval, 'follow_current': True}}]
    ).finish()
    assert follower.finish() >= 1
    if served == 'address':
      with RetrievalClient(server.address) as client:
        assert client.status().metadata['step'] == steps
  _assert_is_of(index, run / f'checkpoint_{steps}')
  # Nothing is pinned by a run that follows.
  assert not GenerationStore(index).pinned().get(str(run))
  # What the run says of its batches: known, and never of the future.
  host = [np.load(path) for path in sorted(run.glob('checkpoint_*/host/*.npz'))]
  for arrays in host:
    if 'pending/generation_step' in arrays.files:
      assert arrays['pending/generation_step'] <= steps
  assert f'step {steps}/{steps}' in output
  # A resume searches what is current by then.
  output = tiny.start(
    tmp_path / 'log',
    [job | {'steps': steps + 4, 'retrieval': {'index': str(index), 'follow_current': True}}],
  ).finish()
  assert f'Resumed from checkpoint_{steps}' in output
  final = np.load(run / f'checkpoint_{steps + 4}' / 'host' / 'process_00000-of-00001.npz')
  assert final['pending/generation_step'] == steps
  assert final['pending/generation'] == GenerationStore(index).current()
