"""Options by the names of their fields: one field and one flag each."""

import dataclasses

import pytest

from ralm_jax.commands import evaluate
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.evaluation import option_fields
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.task import EvaluationTask
from ralm_jax.jobs.config import Index, Task
from ralm_jax.retrieval.index_source import IndexSource


def test_every_option_has_a_flag():
  flags = {action.dest for action in evaluate._parser(None, None)._actions}
  # `ralm eval` and `ralm infer` differ in it.
  assert option_fields.names(EvaluationTask) - flags == {'require_answers'}


def test_every_option_is_one_of_a_task_in_gin_files():
  fields = {field.name for field in dataclasses.fields(Task)} - {'name', 'answering'}
  assert fields == option_fields.names(EvaluationTask) - option_fields.names(AnswerOptions)


def test_from_names_and_back():
  values = {'questions': 'q.jsonl', 'num_beams': 4, 'n_passages': 7, 'with_loss': True}
  task = EvaluationTask.make(**values)
  assert task.answering == AnswerOptions(decoding=DecodingOptions(num_beams=4))
  assert task.passages.n_passages == 7 and task.scoring.with_loss
  flat = option_fields.flatten(task)
  assert flat.keys() == option_fields.names(EvaluationTask)
  assert values.items() <= flat.items()
  assert EvaluationTask.make(**flat) == task
  assert (
    Task('nq', 'q.jsonl', n_passages=7, with_loss=True, answering=task.answering).evaluation()
    == task
  )
  # Flags of something else are left alone, names of nothing are not.
  assert option_fields.fill(EvaluationTask, {**values, 'output': 'x'}) == task
  with pytest.raises(TypeError, match='EvaluationTask has no option beams, width'):
    EvaluationTask.make(questions='q', beams=4, width=2)


@pytest.mark.parametrize(
  'options, message',
  [
    ({'n_passages': 0}, 'n_passages must be at least 1'),
    ({'passages_from': 'none', 'n_passages': 3}, 'leave --n_passages out'),
    ({'retrieve_only': True, 'answering': AnswerOptions(seed=1)}, 'Nothing is decoded'),
  ],
)
def test_a_task_in_a_gin_file_is_checked_there(options, message):
  with pytest.raises(ValueError, match=message):
    Task('nq', 'q.jsonl', **options)


def test_index_sources():
  values = {'index': None, 'retrieval_address': 'host:1', 'backend': 'process', 'shots': 3}
  source = IndexSource.from_flags(values)
  assert source == IndexSource(address='host:1')
  assert source.flags_given == ['retrieval_address']
  assert Index(retrieval_address='host:1') == Index.from_flags(values)
  assert Index(retrieval_address='host:1').address == 'host:1'
  # Where it is reached, and how fast, changes no answer.
  assert source.choices == IndexSource(address='b:2', threads=2, retry_for_s=1.0).choices
  assert source.choices != IndexSource(address='host:1', nprobe=4).choices
  with pytest.raises(ValueError, match='either a path or a retrieval_address'):
    Index()
