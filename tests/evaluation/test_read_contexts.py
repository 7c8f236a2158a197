"""Passages and heads that are kept as they have been read."""

import dataclasses

import jax
import numpy as np
import pytest

from ralm_jax.evaluation import read_contexts
from ralm_jax.evaluation.demonstrations import Pool
from ralm_jax.evaluation.task import ReadingOptions
from tests import tiny
from tests.evaluation import test_decoder_evaluation
from tests.evaluation.test_decoder_evaluation import evaluator, questions

world = test_decoder_evaluation.world


class Counted:
  """Counts what is read: heads, and passages behind them."""

  def __init__(self, function):
    self.function, self.heads, self.passages = function, 0, 0

  def __call__(self, params, head, tokens, mask):
    if len(tokens) == 1:
      self.heads += 1
    else:
      self.passages += 1
    return self.function(params, head, tokens, mask)


@pytest.fixture
def parallel(world):
  """The world whose reader reads in parallel, and a pool of demonstrations."""
  spec = world.spec
  model = dataclasses.replace(spec.model, reading='parallel')
  return dataclasses.replace(spec, model=model)


def _counting(evaluator):
  contexts = evaluator._contexts
  contexts._read = Counted(contexts._read)
  return evaluator


def _pool(folder):
  rows = [
    {**row, 'passages': tiny.passages()[i : i + 1]}
    for i, row in enumerate(tiny.questions())
    if i >= 30
  ]
  shown = tiny.write_jsonl(folder / 'shown.jsonl', rows)
  return Pool.read(ReadingOptions(demonstrations=str(shown), num_demonstrations=2), 'qa')


def _same(found, expected):
  for one, other in zip(found, expected):
    assert one.prediction == other.prediction
    np.testing.assert_allclose(one.log_probability, other.log_probability, atol=1e-4)


@pytest.mark.parametrize('scanned', [False, True])
@pytest.mark.parametrize('in_folder', [False, True])
def test_answers_are_the_same_and_passages_read_once(world, parallel, tmp_path, in_folder, scanned):
  params = world.params
  if scanned:
    parallel, params = _scanned(parallel, params)
  pool = _pool(tmp_path)
  options = ReadingOptions(
    passage_cache_mib=64, passage_cache=str(tmp_path / 'kept') if in_folder else None
  )
  expected = evaluator(world, parallel, shown=pool).answer(params, questions())
  keeping = _counting(evaluator(world, parallel, shown=pool, how_read=options))
  different = {p.id for q in questions() for p in q.passages[:3]}
  for _ in range(2):
    _same(keeping.answer(params, questions()), expected)
    read = keeping._contexts._read
    assert read.passages == -(-len(different) // read_contexts._AT_A_TIME)
    assert read.heads == 1
  again = _counting(evaluator(world, parallel, shown=pool, how_read=options))
  _same(again.answer(params, questions()), expected)
  assert bool(again._contexts._read.passages) != in_folder


def _scanned(spec, params):
  reader = dataclasses.replace(spec.model.reader_config, scan_layers=True)
  decoder = dict(params['reader']['decoder'])
  layers = [decoder.pop(f'layers_{i}') for i in range(2)]
  decoder['layers'] = {'layer_0': jax.tree.map(lambda *x: np.stack(x), *layers)}
  model = dataclasses.replace(spec.model, reader_config=reader)
  return (
    dataclasses.replace(spec, model=model),
    {**params, 'reader': {**params['reader'], 'decoder': decoder}},
  )


def test_other_parameters_and_damaged_files_are_read_anew(world, parallel, tmp_path):
  options = ReadingOptions(passage_cache_mib=64, passage_cache=str(tmp_path))
  expected = evaluator(world, parallel).answer(world.params, questions())
  evaluator(world, parallel, how_read=options).answer(world.params, questions())
  files = sorted(tmp_path.glob('*/*.safetensors'))
  files[0].write_bytes(files[0].read_bytes()[:100])
  keeping = _counting(evaluator(world, parallel, how_read=options))
  _same(keeping.answer(world.params, questions()), expected)
  assert keeping._contexts._read.passages == 1
  assert len(sorted(tmp_path.glob('*/*.safetensors'))) == len(files)
  other = jax.tree.map(lambda leaf: leaf * 1.01, world.params)
  _same(keeping.answer(other, questions()), evaluator(world, parallel).answer(other, questions()))
  assert keeping._contexts._read.passages > 1


def test_those_used_longest_ago_go_first(tmp_path):
  for folder in (None, str(tmp_path)):
    cache = read_contexts._Cache(4000)
    cache.begin(folder, {'reader': np.zeros(1)})
    names = [bytes([i]) * 16 for i in range(4)]
    for name in names[:3]:
      cache.put(name, [np.full(300, name[0], np.float32)])
    assert cache.get(names[0]) is not None
    cache.put(names[3], [np.zeros(300, np.float32)])
    assert [cache.get(name) is not None for name in names] == [True, False, True, True]
    assert cache.get(names[2])[0][0] == 2


def test_what_is_not_read_by_itself_is_not_kept(world):
  with pytest.raises(ValueError, match='--reading parallel'):
    evaluator(world, how_read=ReadingOptions(passage_cache_mib=1))
  with pytest.raises(ValueError, match='give passage_cache_mib'):
    ReadingOptions(passage_cache='folder')
