"""Re-ranking and stored embeddings, in whole runs."""

import re

import numpy as np
import pytest

from retrieval_service.generations import GenerationStore
from tests import tiny


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> tiny.Data:
  return tiny.make_data(tmp_path_factory.mktemp('data'))


def _job(folder, data, *, retrieval=None, **job):
  folder.mkdir(exist_ok=True)
  return {
    'data': str(data.folder),
    'model_dir': str(folder / 'run'),
    'steps': 6,
    'random_seed': 5,
    'checkpoint': {'period': 3, 'keep': 3, 'asynchronous': False},
    'retrieval': {'index': str(folder / 'index'), **(retrieval or {})},
    **job,
  }


def _overlaps(output):
  return list(map(float, re.findall(r'retrieval/rerank_overlap (\S+)', output)))


def _assert_same_end(first, second):
  assert not tiny.differing(*(tiny.load_checkpoint(f / 'run', 6) for f in (first, second)))


def test_all_candidates_are_an_exact_search_of_a_fresh_index(data, tmp_path):
  """Re-ranked from a stale index, or searched in one refreshed at each step."""
  folders = reranked, refreshed = tmp_path / 'reranked', tmp_path / 'refreshed'
  outputs = [
    tiny.start(
      tmp_path / 'log', [_job(folder, data, retrieval=retrieval, retrieval_lookahead=0)]
    ).finish()
    for folder, retrieval in zip(folders, ({'n_candidates': tiny.COUNT}, {'refresh_index': 1}))
  ]
  _assert_same_end(reranked, refreshed)
  overlaps = _overlaps(outputs[0])
  assert len(overlaps) == 6 and not _overlaps(outputs[1])
  # The index is fresh at first, and less and less so.
  assert overlaps[0] == 1 and min(overlaps) < 1
  assert GenerationStore(reranked / 'index').current() == 1
  assert GenerationStore(refreshed / 'index').current() == 7


@pytest.mark.slow
def test_killed_while_re_ranking(data, tmp_path):
  plain, killed = tmp_path / 'plain', tmp_path / 'killed'
  options = {
    'retrieval': {'n_candidates': 8, 'rerank_chunk': 4},
    'num_microbatches': 2,
    'devices': 2,
  }
  output = tiny.start(
    tmp_path / 'log',
    [
      _job(plain, data, **options),
      _job(killed, data, **options, kills=[{'glob': f'{killed}/run/checkpoint_3'}]),
    ],
  ).finish()
  assert 'KILLED' in output and 'Resumed from checkpoint_3' in output
  _assert_same_end(plain, killed)
  host = np.load(plain / 'run/checkpoint_6/host/process_00000-of-00001.npz')
  assert host['pending/rows'].shape == (4, 8)


@pytest.mark.slow
def test_stored_embeddings(tmp_path):
  """Query-side training from a tied checkpoint: the loss takes the index's
  embeddings, and the passage tower stays as the checkpoint had it."""
  trained = tiny.trained()
  plain, killed = tmp_path / 'plain', tmp_path / 'killed'
  options = {
    'model': {'query_side': 'stored', 'tied_retriever': False},
    'initial_checkpoint_path': str(trained.run),
    'retrieval': {'index': str(trained.index)},
  }
  output = tiny.start(
    tmp_path / 'log',
    [
      _job(plain, trained.data, **options),
      _job(killed, trained.data, **options, kills=[{'glob': f'{killed}/run/checkpoint_3'}]),
    ],
  ).finish()
  assert 'KILLED' in output and 'Resumed from checkpoint_3' in output
  _assert_same_end(plain, killed)
  start = tiny.load_checkpoint(trained.run, 4)['params']['retriever']
  end = tiny.load_checkpoint(plain / 'run', 6)['params']['retriever']
  assert not tiny.differing(end['passage_encoder'], start)
  assert tiny.differing(end['query_encoder'], start)
  # What waits for the next step holds the index's own embeddings.
  host = np.load(plain / 'run/checkpoint_6/host/process_00000-of-00001.npz')
  stored = np.asarray(GenerationStore(trained.index).open_current().embeddings)
  assert host['pending/embeddings'].dtype == np.float16
  np.testing.assert_array_equal(host['pending/embeddings'], stored[host['pending/rows']])


def test_what_does_not_go_together(data, tmp_path):
  with pytest.raises(ValueError, match='n_candidates 2 is fewer than the 3'):
    tiny.train(data, tmp_path / 'run', retrieval={'n_candidates': 2})
  with pytest.raises(ValueError, match='n_candidates re-encodes'):
    tiny.train(
      data,
      tmp_path / 'run',
      retrieval={'n_candidates': 8},
      model={'query_side': 'stored', 'tied_retriever': False},
    )
  with pytest.raises(ValueError, match="one of process, device, not 'disk'"):
    tiny.train(data, tmp_path / 'run', retrieval={'backend': 'disk'})
