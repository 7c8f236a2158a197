"""Training with a decoder-only reader, from files to answers: train, resume, evaluate, ask."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest

from ralm_jax.evaluation.task import EvaluationTask
from ralm_jax.models.decoder_config import DecoderConfig
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import asking, evaluation, opening
from tests import decoder_folders, tiny

READINGS = ('in_context', 'parallel', 'rag_token', 'rag_sequence')
FEW = [READINGS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in READINGS[1:])]
SIZE, STEPS = 600, 12
READER = DecoderConfig(
  vocab_size=SIZE,
  emb_dim=32,
  num_heads=2,
  num_kv_heads=1,
  head_dim=16,
  num_decoder_layers=1,
  mlp_dim=64,
  max_positions=512,
  dropout_rate=0.1,
)
TEXT = dict(
  question_format='Question: {question}\nAnswer:',
  target_format=' {answer}',
  query_format='{question}',
  reader_query_length=32,
  passage_length=64,
)


class Data(tiny.Data):
  """With the reader's own vocabulary, and a corpus for it."""

  @property
  def reader_vocabulary(self) -> pathlib.Path:
    return self.folder / 'reader' / 'tokenizer.json'

  @property
  def corpus(self) -> pathlib.Path:
    return self.folder / 'prompted_corpus'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  from ralm_jax.data.corpus import passage_store

  data = Data(tiny.make_data(tmp_path_factory.mktemp('prompted')).folder)
  texts = [f'Context: {p["title"]}. {p["text"]}\n' for p in tiny.passages()]
  texts += [f'Question: {q["question"]}\nAnswer: {q["answers"][0]}\n' for q in tiny.questions()]
  decoder_folders.write(data.folder / 'reader', 'smollm2', tuple(texts), size=SIZE)
  passage_store.build_corpus(
    data.passages,
    data.corpus,
    data.reader_vocabulary,
    data.retriever_vocabulary,
    n_workers=1,
    progress=False,
  )
  return data


def train(data, folder, steps, *, model=None, **options):
  changes = model or {}
  reading = changes.get('reading', 'in_context')
  defaults = {
    'reader_config': READER,
    'reading': 'in_context',
    'gold_score': 'none' if reading.startswith('rag') else 'perplexity',
    'temperature_gold': 1.0,
    'temperature_score': 1.0,
  }
  return tiny.train(
    data,
    folder,
    steps=steps,
    model=defaults | changes,
    text=TEXT | options.pop('text', {}),
    recall_skip=0,
    **options,
  )


def losses_of(folder):
  """The reader's, of each step."""
  import tensorflow as tf

  (path,) = (folder / 'train').glob('events.out.*')
  values = [
    value
    for event in tf.compat.v1.train.summary_iterator(str(path))
    for value in event.summary.value
  ]
  return [float(tf.make_ndarray(v.tensor)) for v in values if v.tag == 'loss/reader']


@functools.cache
def trained(data, reading):
  folder = data.folder / f'run_{reading}'
  return folder, train(
    data,
    folder,
    STEPS,
    model={'reading': reading},
    checkpoint={'period': 4},
    evaluation={'questions': str(data.questions), 'period': STEPS, 'num_examples': 4},
  )


def moved(now, then):
  different = jax.tree.map(lambda a, b: not np.array_equal(a, b), now, then)
  return np.mean(jax.tree.leaves(different))


@pytest.mark.parametrize('reading', FEW)
def test_both_learn_and_an_interrupted_run_ends_alike(data, reading, tmp_path):
  folder, state = trained(data, reading)
  first = opening.open_checkpoint(folder / 'checkpoint_4').params
  for name in ('reader', 'retriever'):
    assert moved(state.params[name], first[name]) > 0.5
  losses = losses_of(folder)
  assert len(losses) == STEPS and np.mean(losses[-3:]) < np.mean(losses[:3])
  options = {'model': {'reading': reading}, 'checkpoint': {'period': 4}}
  train(data, tmp_path / 'run', 4, **options)
  again = train(data, tmp_path / 'run', STEPS, **options)
  assert not tiny.differing(again, state)


@pytest.mark.parametrize('reading', FEW)
def test_what_was_trained_answers(data, reading, tmp_path):
  """As while it was trained, by `ralm eval` and by `ralm ask`."""
  folder, state = trained(data, reading)
  source = IndexSource(str(data.folder / 'index'))
  during = folder / 'inference_eval' / f'step_{STEPS}' / 'predictions.jsonl'
  answers = [json.loads(line) for line in during.read_text().splitlines()]
  assert len(answers) == 4 and all(len(row['passages']) == 3 for row in answers)
  task = EvaluationTask.make(questions=str(data.questions), num_examples=4)
  metrics = evaluation.evaluate(str(folder), task, source, str(tmp_path / 'eval'), batch_size=4)
  assert metrics['count'] == 4
  after = [
    json.loads(line) for line in (tmp_path / 'eval/predictions.jsonl').read_text().splitlines()
  ]
  assert [row['prediction'] for row in after] == [row['prediction'] for row in answers]
  asked = asking.ask(tiny.questions()[0]['question'], checkpoint=str(folder), source=source)
  assert asked.prediction == answers[0]['prediction']
  assert asked.log_probability == pytest.approx(answers[0]['log_probability'], abs=1e-3)


@pytest.mark.slow
def test_a_run_begins_with_weights_of_another_dtype(data, tmp_path):
  """In bfloat16; then with its reader frozen, and with its retriever."""
  folder, _ = trained(data, 'in_context')
  reader = dataclasses.replace(READER, dtype='bfloat16', remat_policy='full')
  start = {'initial_checkpoint_path': str(folder)}
  state = train(data, tmp_path / 'half', 2, model={'reader_config': reader}, **start)
  assert int(state.skipped_steps) == 0
  assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {'float32'}
  first = opening.open_checkpoint(folder).params
  assert moved(state.params['reader'], first['reader']) > 0.5
  state = train(data, tmp_path / 'frozen', 2, reader_optimizer=None, **start)
  assert moved(state.params['reader'], first['reader']) == 0
  assert moved(state.params['retriever'], first['retriever']) > 0.5
  state = train(data, tmp_path / 'fixed', 2, retriever_optimizer=None, **start)
  assert moved(state.params['retriever'], first['retriever']) == 0
  assert moved(state.params['reader'], first['reader']) > 0.5


@pytest.mark.parametrize(
  'options, message',
  [
    ({'model': {'reading': 'rag_token', 'gold_score': 'perplexity'}}, "set gold_score = 'none'"),
    ({'model': {'reading': 'fusion'}}, "'fusion' is not what a decoder-only reader can do"),
    ({'model': {'reading': 'rag_sequence', 'n_context': 2}}, 'n_context does not go with'),
    ({'text': {'prompt_length': 506}}, 'prompt_length 506 and target_length 8 .* 512 positions'),
  ],
)
def test_what_cannot_be_trained_is_said_first(data, options, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    train(data, tmp_path / 'run', 2, **options)
  assert not (tmp_path / 'run').exists()
