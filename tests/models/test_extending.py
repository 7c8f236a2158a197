"""CONTRIBUTING's gold score, reading and retriever: registered from outside, and trained."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.models import distillation, dual_encoder, readings
from ralm_jax.training import train_state, train_step
from ralm_jax.training.optimizers import Optimizer
from tests import tiny
from tests.docs import examples
from tests.runs import tiny_run

BATCH = tiny_run.make_batch()


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  """What the examples of CONTRIBUTING.md register, for one test."""
  monkeypatch.setitem(distillation.GOLD_SCORES, 'first_token', None)
  monkeypatch.setitem(readings.READINGS, 'rag_best', None)
  monkeypatch.setitem(dual_encoder.ENCODERS, 'bag_of_words', None)
  return {name: examples.run(name) for name in ('my_losses', 'my_readings', 'my_retrievers')}


def _train(model, steps=2):
  optimizers = {
    name: Optimizer(optax.sgd(0.1), lambda _: 0.1, None) for name in ('reader', 'retriever')
  }
  state = train_state.create(model, tiny_run.make_params(model), optimizers, 0)
  step = jax.jit(
    train_step.make_train_step(model, optimizers), compiler_options=tiny_run.QUICK_COMPILE
  )
  losses, start = [], state.params
  for _ in range(steps):
    state, metrics = step(state, BATCH)
    losses.append(float(metrics['loss']))
  moved = jax.tree.map(lambda old, new: float(jnp.max(jnp.abs(new - old))), start, state.params)
  return losses, {name: max(jax.tree.leaves(moved[name])) for name in moved}


@pytest.mark.parametrize(
  'names', [{'gold_score': 'first_token'}, {'reading': 'rag_best', 'gold_score': 'none'}], ids=str
)
def test_the_train_step_learns_by_it(names):
  losses, moved = _train(tiny_run.make_model(**names))
  assert np.all(np.isfinite(losses)) and losses[1] != losses[0]
  assert moved['reader'] > 0 and moved['retriever'] > 0


def test_a_reading_scores_and_answers():
  model = tiny_run.make_model(reading='rag_best', gold_score='none')
  params = tiny_run.make_params(model)
  jit = functools.partial(jax.jit, compiler_options=tiny_run.QUICK_COMPILE)
  assert np.all(jit(model.score)(params, BATCH) < 0)
  answers = jit(functools.partial(model.predict, max_length=3))(params, BATCH)
  assert answers.tokens.shape == (len(BATCH.target_tokens), 1, 3)


def test_an_unknown_name_says_what_there_is():
  with pytest.raises(ValueError, match=r"gold_score 'first' is unknown; .*'emdr2', 'first_token'"):
    tiny_run.make_model(gold_score='first')
  with pytest.raises(ValueError, match=r"reading 'best' is unknown; .*'rag_token', .*'rag_best'"):
    tiny_run.make_model(reading='best')


def test_a_retriever_learns_and_is_saved(registered, tmp_path, monkeypatch):
  """Whoever opens the run imports the module that it needs."""
  config = registered['my_retrievers'].BagConfig(vocab_size=128, emb_dim=16)
  model = dataclasses.replace(tiny_run.make_model(), retriever_config=config)
  losses, moved = _train(model)
  assert np.all(np.isfinite(losses)) and losses[1] != losses[0] and moved['retriever'] > 0
  saved = Specification.load(str(tiny.trained().run))
  dataclasses.replace(saved, model=dataclasses.replace(saved.model, retriever_config=config)).save(
    str(tmp_path)
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path, ''])
  with pytest.raises(ValueError, match='my_retrievers, which cannot be imported'):
    Specification.load(str(tmp_path))
  (tmp_path / 'my_retrievers.py').write_text(examples.texts()['my_retrievers'])
  loaded = Specification.load(str(tmp_path)).model.retriever_config
  assert dataclasses.asdict(loaded) == dataclasses.asdict(config)
  del sys.modules['my_retrievers']
