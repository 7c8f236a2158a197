"""RAG's decoders against enumeration and Hugging Face; prefixes, sharding."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.interop import huggingface
from ralm_jax.models import fid, rag
from ralm_jax.models.generation import Generation, Prefix
from ralm_jax.models.prediction import ReadPassages
from ralm_jax.models.readings import READINGS
from ralm_jax.training.partitioning import Partitioner

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
from tests.models import rag_world as world

MAX_LENGTH = 4


@pytest.fixture(scope='module')
def peers():
  return {'bart': world.bart_peer(forced_eos_token_id=None), 't5': world.t5_peer()}


@pytest.fixture(scope='module')
def readers(peers, tmp_path_factory):
  loaders = {'bart': huggingface.load_bart, 't5': huggingface.load_t5}
  loaded = {}
  for kind, peer in peers.items():
    folder = tmp_path_factory.mktemp(kind)
    peer.save_pretrained(folder)
    loaded[kind] = loaders[kind](folder)
  return loaded


@functools.cache
def _compiled(config, reading, **kwargs):
  """One compilation for all calls alike."""

  def run(params, tokens, mask, prior, prefix):
    return _run(config, params, tokens, mask, prior, reading, prefix=prefix, **kwargs)

  return world.quick_jit(run)


def _run(config, params, tokens, mask, prior, reading, *, prefix=None, rng=None, **kwargs):
  passages = ReadPassages(
    fid.make_reader(config), params, tokens, mask, Generation(**kwargs), prefix and Prefix(*prefix)
  )
  return READINGS[reading]().predict(passages, log_prior=prior, rng=rng)


def _predict(
  config,
  params,
  tokens,
  mask,
  prior,
  reading,
  options=DecodingOptions(),
  max_length=MAX_LENGTH,
  prefix=None,
  **kwargs,
):
  run = _compiled(config, reading, options=options, max_length=max_length, **kwargs)
  return run(params, tokens, mask, prior, prefix)


def _answer(tokens, eos_id):
  """Produced ids up to the end of sequence."""
  tokens = [int(t) for t in tokens]
  return tokens[: tokens.index(eos_id) + 1] if eos_id in tokens else tokens


def _greedy_by_enumeration(enumeration, prior, eos_id, prefix=()):
  sequence = []
  while len(sequence) < MAX_LENGTH and sequence[-1:] != [eos_id]:
    log_probs = enumeration.next_log_probs(prefix, sequence)
    sequence.append(int(np.argmax(world.logsumexp(prior[:, None] + log_probs, axis=0))))
  return sequence


@pytest.mark.parametrize('kind', ['bart', 't5'])
def test_rag_token_greedily_is_the_marginal_s_best_token(kind, readers):
  config, params = readers[kind]
  tokens, mask = world.passages()
  prior = world.log_softmax(world.scores()).astype(np.float32)
  output = _predict(config, params, tokens, mask, prior, 'rag_token')
  for i in range(world.BATCH):
    one = slice(i, i + 1)
    enumeration = world.Enumeration(config, params, tokens[one], mask[one])
    expected = _greedy_by_enumeration(enumeration, prior[i], config.eos_id)
    assert _answer(output.tokens[i, 0], config.eos_id) == expected
    by_passage = enumeration.token_log_probs((), expected)
    likelihood = -rag.token_nll(prior[one], by_passage[None], np.ones((1, len(expected))))
    np.testing.assert_allclose(output.log_probs[i, 0], likelihood[0], rtol=1e-4)


@pytest.mark.parametrize('num_beams', [1, 3])
@pytest.mark.parametrize('kind', ['bart', 't5'])
def test_rag_token_ids_are_those_of_hugging_face(kind, num_beams, peers, readers):
  """With full passages: its RAG classes do not mask padding in generation."""
  config, params = readers[kind]
  tokens, mask = world.passages(full=True)
  prior = world.log_softmax(world.scores()).astype(np.float32)
  output = _predict(
    config,
    params,
    tokens,
    mask,
    prior,
    'rag_token',
    DecodingOptions(num_beams=num_beams),
    max_length=8,
  )
  dpr = transformers.DPRConfig(
    vocab_size=world.VOCAB,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
  )
  peer = transformers.RagTokenForGeneration(
    question_encoder=transformers.DPRQuestionEncoder(dpr),
    generator=peers[kind],
    config=transformers.RagConfig.from_question_encoder_generator_configs(
      dpr, peers[kind].config, n_docs=world.PASSAGES
    ),
  ).eval()
  flat = lambda array: world.long(array.reshape(-1, world.LENGTH))
  theirs = peer.generate(
    context_input_ids=flat(tokens),
    context_attention_mask=flat(mask),
    doc_scores=torch.tensor(world.scores()),
    n_docs=world.PASSAGES,
    num_beams=num_beams,
    max_length=9,
    do_sample=False,
    decoder_start_token_id=config.decoder_start_id,
    eos_token_id=config.eos_id,
    pad_token_id=config.pad_id,
    bos_token_id=None,
  )
  for ours, row in zip(output.tokens[:, 0], theirs.numpy()[:, 1:]):
    assert _answer(ours, config.eos_id) == _answer(row, config.eos_id)


def test_an_exhaustive_rag_token_search_finds_the_most_likely_answer(readers):
  config, params = readers['bart']
  tokens, mask = (array[:1] for array in world.passages())
  prior = world.log_softmax(world.scores()[:1]).astype(np.float32)
  output = _predict(
    config,
    params,
    tokens,
    mask,
    prior,
    'rag_token',
    DecodingOptions(num_beams=world.VOCAB, num_return=3, length_penalty=0.0),
    max_length=2,
  )
  enumeration = world.Enumeration(config, params, tokens, mask)
  step = [enumeration.next_log_probs((), [t]) for t in range(world.VOCAB)]
  first = world.logsumexp(prior[0][:, None] + enumeration.next_log_probs((), []), axis=0)
  # An answer that does not end within the two tokens ends there.
  likelihoods = {(config.eos_id,): first[config.eos_id]}
  for t, u in itertools.product(range(world.VOCAB), repeat=2):
    if t != config.eos_id:
      likelihoods[(t, u)] = first[t] + world.logsumexp(prior[0] + step[t][:, u], axis=0)
  best = sorted(likelihoods, key=likelihoods.get)[::-1][:3]
  assert [tuple(_answer(row, config.eos_id)) for row in output.tokens[0]] == best


def _sequence_candidates(config, params, tokens, mask, num_beams):
  """What each passage's own beam search finds, with its likelihood."""
  found = []
  for z in range(world.PASSAGES):
    alone = _predict(
      config,
      params,
      tokens[:, z : z + 1],
      mask[:, z : z + 1],
      None,
      'fusion',
      DecodingOptions(num_beams=num_beams, num_return=num_beams),
    )
    found.append(
      {
        tuple(_answer(row, config.eos_id)): float(log_prob)
        for row, log_prob in zip(alone.tokens[0], alone.log_probs[0])
      }
    )
  return found


@pytest.mark.parametrize('rag_decoding', ['thorough', 'fast'])
def test_rag_sequence(rag_decoding, readers):
  config, params = readers['bart']
  tokens, mask = world.passages()
  prior = world.log_softmax(world.scores()).astype(np.float32)
  num_beams = 3
  options = DecodingOptions(num_beams=num_beams, num_return=2)
  output = _predict(
    config,
    params,
    tokens,
    mask,
    prior,
    'rag_sequence',
    options,
    rag_decoding=rag_decoding,
    candidate_chunk=2,
  )
  for i in range(world.BATCH):
    one = slice(i, i + 1)
    found = _sequence_candidates(config, params, tokens[one], mask[one], num_beams)
    enumeration = world.Enumeration(config, params, tokens[one], mask[one])
    scores = {}
    for answer in set().union(*found):
      if rag_decoding == 'thorough':
        by_passage = enumeration.token_log_probs((), answer).sum(-1)
      else:
        by_passage = np.asarray([own.get(answer, -np.inf) for own in found])
      scores[answer] = world.logsumexp(prior[i] + by_passage, axis=0)
    best = sorted(scores, key=scores.get)[::-1][: options.num_return]
    ours = [tuple(_answer(row, config.eos_id)) for row in output.tokens[i]]
    assert ours == best
    np.testing.assert_allclose(output.scores[i], [scores[answer] for answer in best], rtol=1e-4)


def test_thorough_and_fast_decoding_can_differ(readers):
  """Else the tests above would not tell them apart."""
  config, params = readers['t5']
  tokens, mask = world.passages()
  prior = world.log_softmax(world.scores()).astype(np.float32)
  thorough, fast = (
    _predict(
      config,
      params,
      tokens,
      mask,
      prior,
      'rag_sequence',
      DecodingOptions(),
      rag_decoding=rag_decoding,
    ).scores
    for rag_decoding in ('thorough', 'fast')
  )
  assert np.all(thorough >= fast - 1e-5) and np.any(thorough > fast + 1e-4)


@pytest.mark.parametrize('held', [(0, 1), (1, 2)])
@pytest.mark.parametrize('reading', ['rag_token', 'rag_sequence'])
def test_empty_slots_change_no_answer(reading, held, readers):
  """Filters leave fewer passages than were asked for."""
  config, params = readers['bart']
  tokens, mask = world.passages()
  scores, held = world.scores(), list(held)
  options = DecodingOptions(num_beams=2)
  expected = _predict(
    config,
    params,
    tokens[:, held],
    mask[:, held],
    world.log_softmax(scores[:, held]).astype(np.float32),
    reading,
    options,
  )
  # An empty slot shows the query alone, which may suggest anything, also what
  # a passage does.
  passage_mask = np.zeros((world.BATCH, world.PASSAGES), bool)
  passage_mask[:, held] = True
  shown = np.where(passage_mask[..., None], tokens, tokens[:, held[:1]])
  output = _predict(
    config,
    params,
    shown,
    np.where(passage_mask[..., None], mask, mask[:, held[:1]]),
    np.asarray(rag.log_prior(scores, passage_mask)),
    reading,
    options,
  )
  np.testing.assert_array_equal(output.tokens, expected.tokens)
  np.testing.assert_allclose(output.log_probs, expected.log_probs, rtol=1e-4)


@pytest.mark.parametrize('reading', ['fusion', 'rag_token', 'rag_sequence'])
@pytest.mark.parametrize('num_beams', [1, 2])
def test_a_forced_prefix(reading, num_beams, readers):
  """Rows of different prefixes, together and each alone."""
  config, params = readers['t5']
  tokens, mask = world.passages()
  prior = world.log_softmax(world.scores()).astype(np.float32)
  prefixes = [[5, 6, 7, 8, 9], [12]]
  options = DecodingOptions(num_beams=num_beams)
  padded = np.zeros((2, 5), np.int32)
  padded[0], padded[1, 4:] = prefixes
  together = _predict(
    config,
    params,
    tokens,
    mask,
    prior,
    reading,
    options,
    prefill_chunk=2,
    prefix=(padded, np.asarray([5, 1])),
  )
  for i, prefix in enumerate(prefixes):
    one = slice(i, i + 1)
    alone = _predict(
      config,
      params,
      tokens[one],
      mask[one],
      prior[one],
      reading,
      options,
      prefix=(np.asarray([prefix], np.int32), np.asarray([len(prefix)])),
    )
    np.testing.assert_array_equal(together.tokens[i], alone.tokens[0])
    np.testing.assert_allclose(together.log_probs[i], alone.log_probs[0], rtol=1e-4)
    if reading == 'rag_token' and num_beams == 1:
      enumeration = world.Enumeration(config, params, tokens[one], mask[one])
      expected = _greedy_by_enumeration(enumeration, prior[i], config.eos_id, prefix)
      assert _answer(alone.tokens[0, 0], config.eos_id) == expected


@pytest.mark.parametrize('reading', ['rag_token', 'rag_sequence'])
def test_scanned_layers_decode_alike(reading, readers):
  from ralm_jax.interop import initial_weights

  config, params = readers['bart']
  tokens, mask = world.passages()
  prior = world.log_softmax(world.scores()).astype(np.float32)
  options = DecodingOptions(num_beams=2)
  expected = _predict(config, params, tokens, mask, prior, reading, options)
  stacked = {
    name: initial_weights.stack_layers(tree) if name in ('encoder', 'decoder') else tree
    for name, tree in params.items()
  }
  scanned = _predict(
    dataclasses.replace(config, scan_layers=True), stacked, tokens, mask, prior, reading, options
  )
  np.testing.assert_array_equal(scanned.tokens, expected.tokens)


def test_on_a_mesh_answers_are_the_same(readers):
  config, params = readers['bart']
  tokens, mask = world.passages(batch=4)
  prior = world.log_softmax(world.scores(batch=4)).astype(np.float32)
  options = DecodingOptions(num_beams=2)
  run = functools.partial(_run, config, max_length=MAX_LENGTH, reading='rag_token', options=options)
  expected = _predict(config, params, tokens, mask, prior, 'rag_token', options)
  partitioner = Partitioner(num_partitions=2, devices=jax.devices()[:4])
  sharded = partitioner.partition_rows(
    lambda params, tokens, mask, prior: run(params, tokens, mask, prior)
  )(params, *partitioner.put_batch((tokens, mask, prior)))
  np.testing.assert_array_equal(sharded.tokens, expected.tokens)


def test_drawing_from_rag_sequence_draws_a_passage_first(readers):
  """Frequencies of first tokens are those of the mixture."""
  config, params = readers['bart']
  tokens, mask = (array[:1] for array in world.passages())
  prior = world.log_softmax(world.scores()[:1]).astype(np.float32)
  draws = 3000
  output = world.quick_jit(
    functools.partial(
      _run,
      config,
      reading='rag_sequence',
      max_length=1,
      options=DecodingOptions(sample=True, num_return=draws),
      candidate_chunk=500,
    )
  )(params, tokens, mask, prior, rng=jax.random.key(0))
  enumeration = world.Enumeration(config, params, tokens, mask)
  mixture = np.exp(world.logsumexp(prior[0][:, None] + enumeration.next_log_probs((), []), axis=0))
  drawn = np.bincount(np.asarray(output.tokens[0, :, 0]), minlength=world.VOCAB)
  error = np.sqrt(mixture * (1 - mixture) / draws)
  assert np.all(np.abs(drawn / draws - mixture) < 5 * error + 1e-3)


def test_an_unknown_rag_decoding_is_refused(readers):
  config, params = readers['bart']
  tokens, mask = world.passages()
  with pytest.raises(ValueError, match="rag_decoding 'quick' is unknown"):
    _predict(config, params, tokens, mask, world.scores(), 'rag_sequence', rag_decoding='quick')
