"""Learning-rate schedules against their formulas."""

import math

import jax
import numpy as np
import pytest

from ralm_jax.training import schedules


def _rates(schedule, steps):
  return np.asarray([float(schedule(step)) for step in steps])


def test_t5x_default():
  schedule = schedules.create_learning_rate_scheduler(base_learning_rate=0.5, warmup_steps=100)
  expected = [0.5 * min(1.0, s / 100) / math.sqrt(max(s, 100)) for s in (1, 50, 100, 400)]
  np.testing.assert_allclose(_rates(schedule, (1, 50, 100, 400)), expected, rtol=1e-6)


@pytest.mark.parametrize(
  'factor,step,expected',
  [
    ('constant', 7, 0.5),
    ('linear_warmup', 5, 0.25),
    ('linear_warmup', 50, 1.0),
    ('rsqrt_decay', 5, 1 / math.sqrt(20)),
    ('rsqrt_decay', 80, 1 / math.sqrt(80)),
    ('rsqrt_normalized_decay', 5, 1.0),
    ('rsqrt_normalized_decay', 80, 0.5),
    ('decay_every', 29, 0.9**2),
    ('linear_decay', 20, 1.0),
    ('linear_decay', 60, 0.5),
    ('linear_decay', 200, 1e-8),
    ('cosine_decay', 60, 0.5),
    ('cosine_decay', 40, 0.5 * (1 + math.cos(math.pi / 4))),
    ('constant * linear_warmup * linear_decay', 60, 0.25),
  ],
)
def test_factors(factor, step, expected):
  schedule = schedules.create_learning_rate_scheduler(
    factor,
    base_learning_rate=0.5,
    warmup_steps=20,
    total_steps=100,
    decay_factor=0.9,
    steps_per_decay=10,
  )
  assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)


def test_step_offset_counts_from_the_pretrained_step():
  plain = schedules.create_learning_rate_scheduler(warmup_steps=10)
  offset = schedules.create_learning_rate_scheduler(warmup_steps=10, step_offset=1000)
  assert float(offset(1030)) == pytest.approx(float(plain(30)))
  assert float(offset(3)) == pytest.approx(float(plain(0)))


def test_unknown_factor():
  with pytest.raises(ValueError, match="'sqrt' is unknown"):
    schedules.create_learning_rate_scheduler('constant * sqrt')


@pytest.mark.parametrize(
  'shape,form,steps,expected',
  [
    ('linear', 'paper', (0, 5, 10, 60, 110), (0, 0.5, 1, 0.5, 0)),
    ('linear', 'released', (0, 5, 10, 60, 110), (0.1, 0.55, 1, 0.55, 0.1)),
    ('cosine', 'paper', (0, 10, 60, 110), (0, 1, 0.5, 0)),
    ('cosine', 'released', (0, 10, 60, 110), (0, 1, 0.1 + 0.9 * math.cos(math.pi / 4), 0.1)),
    ('fixed', 'paper', (0, 5, 10, 500), (0, 0.5, 1, 1)),
  ],
)
def test_atlas_schedules(shape, form, steps, expected):
  schedule = schedules.atlas_schedule(
    4e-5, total_steps=110, warmup_steps=10, shape=shape, form=form
  )
  np.testing.assert_allclose(
    _rates(schedule, steps), 4e-5 * np.asarray(expected), rtol=1e-5, atol=1e-12
  )


def test_atlas_schedule_rejects_other_shapes():
  with pytest.raises(ValueError, match="'square'"):
    schedules.atlas_schedule(1e-4, 10, 1, shape='square')


def test_a_schedule_can_be_traced():
  schedule = schedules.create_learning_rate_scheduler('constant * cosine_decay')
  assert float(jax.jit(schedule)(3)) == pytest.approx(float(schedule(3)))
