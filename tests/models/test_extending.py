"""A gold score and a reading from outside of the package, trained by their names."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ralm_jax.models import distillation, readings
from ralm_jax.models.distillation import GoldScore
from ralm_jax.models.readings import RagSequence
from ralm_jax.training import train_state, train_step
from ralm_jax.training.optimizers import Optimizer
from tests.runs import tiny_run

BATCH = tiny_run.make_batch()


@dataclasses.dataclass(frozen=True)
class FirstToken(GoldScore):
  """How likely a passage makes the target's first token."""

  def scores(self, passes, batch):
    return passes.log_probs_of_each()[..., 0]


class RagBest(RagSequence):
  """RAG-Sequence, but the likeliest passage speaks for all of them."""

  @staticmethod
  def log_likelihood(log_prior, token_log_probs, target_mask):
    sequences = jnp.sum(jnp.where(target_mask[:, None], token_log_probs, 0.0), axis=-1)
    return jnp.max(log_prior + sequences, axis=-1)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  monkeypatch.setitem(distillation.GOLD_SCORES, 'first_token', FirstToken)
  monkeypatch.setitem(readings.READINGS, 'rag_best', RagBest)


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
  with pytest.raises(ValueError, match=r"reading 'best' is unknown; .*'rag_token', 'rag_best'"):
    tiny_run.make_model(reading='best')
