"""T5's span corruption against its description, count by count."""

import collections
import itertools

import numpy as np
import pytest

from ralm_jax.data.pretext import noise
from ralm_jax.data.pretext.noise import NoiseConfig, Spans
from ralm_jax.data.text import vocabularies

SENTINELS = np.arange(32099, 31999, -1)


def _rebuild(corrupted, first_sentinel=32099):
  """The tokens before the noise, and which of them were masked."""
  masked = {}
  for token in corrupted.targets.tolist():
    if token > first_sentinel - 100:
      masked[token] = current = []
    else:
      current.append(token)
  tokens, is_masked = [], []
  for token in corrupted.inputs.tolist():
    span = masked.get(token, [token])
    tokens += span
    is_masked += [token in masked] * len(span)
  return tokens, is_masked


@pytest.mark.parametrize('length', [2, 3, 7, 10, 30, 50, 70, 150, 569, 4000])
def test_spans_alternate_and_nothing_is_lost(length):
  config = NoiseConfig()
  for seed in range(20):
    generator = np.random.default_rng(seed)
    spans = noise.random_spans(length, config, generator)
    corrupted = noise.corrupt(np.arange(length), spans, SENTINELS)
    tokens, masked = _rebuild(corrupted)
    assert tokens == list(range(length))
    assert not masked[0] and masked[-1]
    runs = [key for key, _ in itertools.groupby(masked)]
    # Alone among whole numbers are such that Python rounds to the even one.
    expected = max(round(length * 0.15), 1)
    assert sum(masked) == expected
    assert sum(runs) == min(max(round(expected / 3), 1), 100) == len(spans.masked)
    # The first sentinel is 32099, the next are below, in both halves.
    used = list(range(32099, 32099 - sum(runs), -1))
    assert [t for t in corrupted.inputs.tolist() if t > 31999] == used
    assert [t for t in corrupted.targets.tolist() if t > 31999] == used
    assert corrupted.inputs[-1] == used[-1] and corrupted.targets[0] == 32099


def test_halves_are_rounded_to_even():
  config = NoiseConfig(density=0.25, mean_span_length=2.0)
  # 2.5 tokens, 3.5 tokens, 5 tokens in 2.5 spans.
  assert config.counts(10, 100) == (2, 1)
  assert config.counts(14, 100) == (4, 2)
  assert config.counts(20, 100) == (5, 2)


def test_every_span_has_a_token():
  """Where the shares ask for more spans than tokens are left to be seen."""
  config = NoiseConfig(density=0.9, mean_span_length=1.0)
  for length in range(2, 40):
    spans = noise.random_spans(length, config, np.random.default_rng(0))
    assert spans.visible.min() >= 1 and spans.masked.min() >= 1
    assert spans.visible.sum() + spans.masked.sum() == length
  assert config.counts(2, 100) == (1, 1)
  few = noise.random_spans(1000, NoiseConfig(), np.random.default_rng(0), max_spans=4)
  assert len(few.masked) == 4 and few.masked.sum() == 150
  with pytest.raises(ValueError, match='1 tokens has nothing to mask'):
    noise.random_spans(1, config, np.random.default_rng(0))


def test_compositions_are_equally_likely():
  generator = np.random.default_rng(0)
  drawn = collections.Counter(
    tuple(noise.random_composition(5, 3, generator).tolist()) for _ in range(6000)
  )
  assert set(drawn) == {c for c in itertools.product(range(1, 4), repeat=3) if sum(c) == 5}
  assert len(drawn) == 6
  # Each 1,000 with a standard deviation of 29.
  assert max(abs(count - 1000) for count in drawn.values()) < 150
  assert noise.random_composition(4, 4, generator).tolist() == [1] * 4
  assert noise.random_composition(4, 1, generator).tolist() == [4]


def test_closing_sentinel():
  spans = Spans(np.array([2, 1]), np.array([1, 2]))
  tokens = np.array([10, 11, 12, 13, 14, 15])
  plain = noise.corrupt(tokens, spans, SENTINELS)
  assert plain.inputs.tolist() == [10, 11, 32099, 13, 32098]
  assert plain.targets.tolist() == [32099, 12, 32098, 14, 15]
  assert plain.inputs.dtype == plain.targets.dtype == np.int32
  closed = noise.corrupt(tokens, spans, SENTINELS, closing_sentinel=True)
  assert closed.inputs.tolist() == plain.inputs.tolist()
  assert closed.targets.tolist() == [*plain.targets.tolist(), 32097]
  # All sentinels are in use.
  assert (
    noise.corrupt(tokens, spans, SENTINELS[:2], closing_sentinel=True).targets.tolist()
    == plain.targets.tolist()
  )


@pytest.mark.parametrize(
  'config',
  [NoiseConfig(), NoiseConfig(closing_sentinel=True), NoiseConfig(0.5, 1.0), NoiseConfig(0.3, 8.0)],
)
def test_longest_that_fits(config):
  for inputs, targets in [(8, 8), (20, 10), (64, 512), (512, 114), (256, 64)]:
    longest = noise.longest_fitting(config, inputs, targets)

    def fits(length, inputs=inputs, targets=targets):
      spans = noise.random_spans(length, config, np.random.default_rng(0))
      made = noise.corrupt(
        np.arange(length), spans, SENTINELS, closing_sentinel=config.closing_sentinel
      )
      return len(made.inputs) <= inputs and len(made.targets) + 1 <= targets

    assert fits(longest)
    assert not any(fits(length) for length in range(longest + 1, longest + 60))
  with pytest.raises(ValueError, match='reader_query_length or .*target_length'):
    noise.longest_fitting(config, 1, 8)


def test_t5_s_own_lengths():
  """T5 makes inputs of 512 and targets of 114 of 568 tokens, both with eos."""
  assert noise.longest_fitting(NoiseConfig(), 511, 10**6) == 568
  assert noise.longest_fitting(NoiseConfig(closing_sentinel=True), 511, 115) == 568


def test_bad_shares():
  with pytest.raises(ValueError, match='density must be between 0 and 1'):
    NoiseConfig(density=15)
  with pytest.raises(ValueError, match='mean_span_length must be at least 1'):
    NoiseConfig(mean_span_length=0.5)


def test_with_the_official_vocabulary(shared_data):
  """Sentinels between pieces; words that were not cut keep their blank."""
  vocabulary = vocabularies.load_vocabulary(shared_data / 'tokenizers/t5/spiece.model')
  sentinels = np.array([vocabulary.sentinel_id(i) for i in range(100)])
  tokens = np.array(vocabulary.encode('Thank you for inviting me to your party'))
  assert tokens.tolist() == [1562, 25, 21, 14256, 140, 12, 39, 1088]
  spans = Spans(np.array([2, 3]), np.array([2, 1]))
  made = noise.corrupt(tokens, spans, sentinels)
  assert made.inputs.tolist() == [1562, 25, 32099, 140, 12, 39, 32098]
  assert made.targets.tolist() == [32099, 21, 14256, 32098, 1088]
  for text, ids in (
    ('Thank you <extra_id_0> me to your <extra_id_1>', made.inputs),
    ('<extra_id_0> for inviting <extra_id_1> party', made.targets),
  ):
    assert vocabulary.encode(text) == ids.tolist()
    assert vocabulary.decode(ids, keep_sentinels=True) == text
