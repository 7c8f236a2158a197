"""The devices in place of the retrieval process: connecting, `ralm eval`."""

import json
import types

import pytest

from ralm_jax.evaluation.task import EvaluationTask
from ralm_jax.retrieval import connect, index_source
from ralm_jax.retrieval.device.index import DeviceIndex
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import asking, evaluation
from tests import tiny
from tests.retrieval.device.brute_force import vectors


@pytest.fixture(scope='module')
def trained() -> tiny.Trained:
  return tiny.trained()


def test_connects_to_the_devices(trained):
  with connect.connect(
    IndexSource(trained.index, backend='device', device_dtype='float32')
  ) as found:
    assert isinstance(found.client, DeviceIndex)
    assert found.client.status().count == len(found.store) == tiny.COUNT
    found.client.search(vectors(1, dim=16), 3)
    assert found.client.residency.numbers == (1,)
  assert found.client.residency.numbers == ()


def test_answers_as_with_the_process(trained, tmp_path):
  rows, metrics = {}, {}
  for backend in index_source.BACKENDS:
    metrics[backend] = evaluation.evaluate(
      str(trained.run),
      EvaluationTask.make(questions=[str(trained.data.questions)]),
      IndexSource(str(trained.index), backend=backend, device_dtype='float16'),
      str(tmp_path / backend),
      batch_size=16,
    )
    rows[backend] = [
      json.loads(line)
      for line in (tmp_path / backend / 'predictions.jsonl').read_text().splitlines()
    ]
  assert len(rows['device']) == tiny.COUNT
  for one, other in zip(rows['process'], rows['device']):
    assert one['prediction'] == other['prediction']
    for ours, theirs in zip(one['passages'], other['passages']):
      assert ours['id'] == theirs['id']
      assert ours['score'] == pytest.approx(theirs['score'], rel=1e-5)
  whole = ('of', 'noted')
  assert all(metrics['device'].pop(name) == metrics['process'].pop(name) for name in whole)
  assert metrics['device'] == pytest.approx(metrics['process'])
  answer = asking.ask(
    'what is the colour of almar?',
    checkpoint=str(trained.run),
    source=IndexSource(str(trained.index), backend='device'),
  )
  assert len(answer.passages) == 3


@pytest.mark.slow
def test_trains_as_with_the_process(tmp_path):
  """With look-ahead on eight devices, a refresh and a resume: bit for bit."""
  data = tiny.make_data(tmp_path)

  def job(name: str, steps: int, **retrieval) -> dict:
    return {
      'data': str(tmp_path),
      'model_dir': str(tmp_path / name),
      'steps': steps,
      'devices': None,
      'retrieval_lookahead': 1,
      'dataset': {'batch_size': 8},
      'retrieval': {
        'index': str(tmp_path / f'index_{name}'),
        'refresh_index': '0-10:2',
        **retrieval,
      },
    }

  on_devices = {'backend': 'device', 'device_dtype': 'float16'}
  log = tiny.start(
    data.folder / 'log',
    [job('process', 4), job('device', 3, **on_devices), job('device', 4, **on_devices)],
  ).finish(timeout_s=600)
  assert 'putting generation 2 on the devices' in log
  assert 'Resumed from checkpoint_3' in log
  states = [tiny.load_checkpoint(tmp_path / name, 4) for name in ('process', 'device')]
  assert not tiny.differing(*states)


def test_backends_that_cannot_be(tmp_path):
  with pytest.raises(ValueError, match='one of process, device, not .tpu.'):
    with connect.connect(IndexSource(tmp_path, backend='tpu')):
      pass
  with pytest.raises(ValueError, match='in place of the address localhost:1'):
    with connect.connect(IndexSource(address='localhost:1', backend='device')):
      pass
  with pytest.raises(FileNotFoundError, match='holds no index'):
    with connect.connect(IndexSource(tmp_path / 'none', backend='device')):
      pass


def test_lookahead_is_refused_where_order_matters():
  strict, free = (types.SimpleNamespace(needs_strict_order=strict) for strict in (True, False))
  connect.check_lookahead(strict, 0)
  connect.check_lookahead(free, 1)
  with pytest.raises(ValueError, match='retrieval_lookahead to 0'):
    connect.check_lookahead(strict, 1)
