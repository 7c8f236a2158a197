"""Tasks by name: listed before anything is read, made of the files that a run names."""

import functools
import pathlib
import subprocess
import sys

import gin
import pytest
import seqio

from ralm_jax.data import pipeline
from ralm_jax.data.corpus import PassageStore
from ralm_jax.data.pipeline import DatasetConfig
from ralm_jax.data.questions.formats import catalogue
from ralm_jax.data.text import vocabularies
from ralm_jax.runs import gin_config
from ralm_jax.tasks import language_modeling, multiple_choice, qa, registration
from tests import tiny
from tests.docs import examples

ROOT = pathlib.Path(__file__).resolve().parents[2]
LENGTHS = {'query': 40, 'reader_query': 40, 'targets': 8}
NAMED = """
nq_open triviaqa web_questions curated_trec fever fever_2way fever_symmetric kilt_fever kilt_nq
kilt_wow mmlu ms_marco jeopardy templama dated qa_jsonl passages masked_spans prefix_lm
title_section salient_spans tfds_nq_open tfds_trivia_qa tfds_web_questions tfds_wiki40b tfds_c4
""".split()


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny.make_data(tmp_path_factory.mktemp('named'))


@pytest.fixture
def sources(data):
  return {
    'text': tiny.make_text(),
    'reader_vocabulary': str(data.reader_vocabulary),
    'retriever_vocabulary': str(data.retriever_vocabulary),
  }


@pytest.fixture
def clean_gin():
  gin.clear_config()
  yield
  gin.clear_config()


def targets(data, iterator, batches=1):
  vocabulary = vocabularies.load_vocabulary(data.reader_vocabulary)
  return {
    vocabulary.decode(row.tolist()) for _ in range(batches) for row in next(iterator).target_tokens
  }


def of_one_answer(path, answer):
  return str(tiny.write_jsonl(path, [{'question': 'which?', 'answer': [answer]}] * 4))


def test_the_package_lists_all_tasks():
  code = 'import ralm_jax.tasks, seqio; print(*seqio.TaskRegistry.names())'
  shown = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout.split()
  assert set(NAMED) <= set(shown)
  assert {name for name in catalogue.FORMATS if name != 'qa'} <= set(shown)


def test_a_name_is_made_of_the_files_of_the_run(data, sources, tmp_path):
  for answer in ('red', 'blue'):  # The second run's files are not the first's.
    make_task = functools.partial(
      qa.jsonl_task, train=of_one_answer(tmp_path / f'{answer}.jsonl', answer), **sources
    )
    config = DatasetConfig('nq_open', batch_size=4, make_task=make_task)
    iterator = pipeline.get_dataset_iterator(config, LENGTHS)
    assert targets(data, iterator, batches=2) == {answer}
  with pytest.raises(ValueError, match="q.jsonl:1: missing field 'claim'"):
    make_task = functools.partial(
      qa.jsonl_task, train=of_one_answer(tmp_path / 'q.jsonl', 'x'), **sources
    )
    pipeline.get_dataset_iterator(DatasetConfig('fever', make_task=make_task), LENGTHS)
  assert 'fever' in seqio.TaskRegistry.names()


def test_pretext_and_multiple_choice_by_name(data, sources, tmp_path):
  make_task = functools.partial(
    language_modeling.passage_task, corpus=data.corpus, text=sources['text'], min_words=1
  )
  config = DatasetConfig('prefix_lm', batch_size=4, make_task=make_task)
  iterator = pipeline.get_dataset_iterator(config, LENGTHS)
  iterator.use_corpus(PassageStore.open(data.corpus))
  assert len(targets(data, iterator)) > 1
  (tmp_path / 'x_dev.csv').write_text('which?,red,blue,green,it,B\n')
  sources['text'] = tiny.make_text(reader_query_length=64)
  make_task = functools.partial(
    multiple_choice.mmlu_task, train=str(tmp_path / 'x_dev.csv'), **sources
  )
  config = DatasetConfig('mmlu', batch_size=4, make_task=make_task)
  next(pipeline.get_dataset_iterator(config, LENGTHS))


@pytest.mark.parametrize('use', ['splits', 'output_features', 'source'])
def test_without_files(use):
  with pytest.raises(ValueError, match='triviaqa.*gin_configs/runs.*tasks.qa.jsonl_task'):
    getattr(seqio.get_mixture_or_task('triviaqa'), use)
  with pytest.raises(ValueError, match='known by name, but not of which files'):
    pipeline.get_dataset_iterator(DatasetConfig('triviaqa'), LENGTHS)


def test_by_name_from_gin(data, tmp_path, clean_gin):
  """What `--gin.MIXTURE_OR_TASK_NAME="'nq_open'"` does."""
  bindings = {
    'MIXTURE_OR_TASK_NAME': 'nq_open',
    'MODEL_DIR': str(tmp_path),
    'TRAIN_STEPS': 1,
    'TRAIN_QUESTIONS': of_one_answer(tmp_path / 'q.jsonl', 'red'),
    'READER_VOCABULARY': str(data.reader_vocabulary),
    'RETRIEVER_VOCABULARY': str(data.retriever_vocabulary),
  }
  gin_config.parse(
    ['gin_configs/models/tiny.gin', 'gin_configs/runs/train.gin'],
    [f'{name} = {value!r}' for name, value in bindings.items()],
    [str(ROOT)],
  )
  reference = gin.query_parameter('train_script.train.data')
  config = reference.scoped_configurable_fn()
  assert config.mixture_or_task_name == 'nq_open'
  assert targets(data, pipeline.get_dataset_iterator(config, LENGTHS)) == {'red'}


def test_a_task_of_ones_own(data, sources, tmp_path, monkeypatch):
  """The worked example of CONTRIBUTING.md: a format and its task, from another package."""
  monkeypatch.setattr(catalogue, 'FORMATS', dict(catalogue.FORMATS))
  examples.run('my_tasks')
  try:
    path = tiny.write_jsonl(tmp_path / 'r.jsonl', [{'riddle': 'what?', 'solution': 'red'}] * 4)
    make_task = functools.partial(qa.jsonl_task, train=str(path), **sources)
    config = DatasetConfig('riddles', batch_size=4, make_task=make_task)
    assert targets(data, pipeline.get_dataset_iterator(config, LENGTHS)) == {'red'}
    # What has the name already stays, and what is made of files takes its place.
    own = qa.jsonl_task('riddles', train=str(path), record_format='riddles', **sources)
    registration.declare('riddles', qa.jsonl_task)
    assert seqio.get_mixture_or_task(own).splits == ('train',)
  finally:
    seqio.TaskRegistry.remove('riddles')
