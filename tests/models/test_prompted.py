"""Readings of decoder-only readers against transformers on prompts put together by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from ralm_jax.models import distillation, rag
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.choices import ChoiceTokens
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.models.t5 import T5Config
from tests.models import decoder_peers

torch = pytest.importorskip('torch')

FAMILY = decoder_peers.FAMILIES['llama']
HEAD, TAIL, TARGET, SLOTS, LENGTH = 5, 6, 4, 3, 7
CHOICES = ChoiceTokens.make([[39, 7, 1], [39, 3, 9, 1]])


def _model(**changes):
  retriever = BertConfig(
    vocab_size=61, emb_dim=16, num_heads=2, num_layers=1, mlp_dim=24, max_positions=32
  )
  return RetrievalLM(reader_config=FAMILY.config(), retriever_config=retriever, **changes)


@pytest.fixture(scope='module')
def peer():
  model = FAMILY.peer()
  model.set_attn_implementation('eager')
  return model


@pytest.fixture(scope='module')
def params(peer):
  return {'reader': decoder_peers.params_of(peer.state_dict(), FAMILY.config()), 'retriever': {}}


def _ragged(rng, *shape):
  """Tokens of random lengths, padded on the right."""
  tokens = rng.integers(3, 61, shape).astype(np.int32)
  lengths = rng.integers(2, shape[-1] + 1, (*shape[:-1], 1))
  return tokens, np.arange(shape[-1]) < lengths


def _batch(seed=0, shared=False, **changes):
  rng = np.random.default_rng(seed)
  arrays = {}
  for name, shape in (
    ('head', (HEAD,)),
    ('tail', (TAIL,)),
    ('target', (TARGET,)),
    ('reader', (SLOTS, LENGTH)),
  ):
    arrays[f'{name}_tokens'], arrays[f'{name}_mask'] = _ragged(rng, 2, *shape)
  if shared:
    for name in ('head_tokens', 'head_mask'):
      arrays[name] = np.repeat(arrays[name][:1], 2, axis=0)
  arrays['passage_mask'] = np.array([[1, 1, 1], [1, 1, 0]], bool)
  arrays['passage_scores'] = rng.normal(size=(2, SLOTS)).astype(np.float32)
  return ReaderBatch(**arrays, head_is_shared=shared, **changes)


@dataclasses.dataclass(frozen=True)
class Example:
  """One example's texts as lists."""

  head: list
  passages: list
  tail: list
  target: list

  @classmethod
  def of(cls, batch, row):
    def texts(name, *index):
      tokens, mask = getattr(batch, f'{name}_tokens')[row], getattr(batch, f'{name}_mask')[row]
      return [int(t) for t, m in zip(tokens[index], mask[index]) if m]

    count = int(batch.passage_mask[row].sum())
    return cls(
      texts('head'), [texts('reader', i) for i in range(count)], texts('tail'), texts('target')
    )


def _log_probs(peer, tokens, target, positions=None, mask=None):
  """log p of target tokens at the end of tokens + target, and attention and values."""
  ids = torch.tensor([tokens + target])
  arguments = {}
  if mask is not None:
    bias = torch.where(torch.tensor(mask), 0.0, torch.finfo(torch.float32).min)
    arguments = {'attention_mask': bias[None, None], 'position_ids': torch.tensor([positions])}
  out = peer(ids, output_attentions=True, use_cache=True, **arguments)
  log_probs = out.logits[0].log_softmax(-1)[len(tokens) - 1 : -1]
  return log_probs[range(len(target)), target].detach().numpy(), out


def _in_one_prompt(peer, example, passages, order='best_last'):
  """As a researcher writes it: one text after the other."""
  chosen = [example.passages[i] for i in passages]
  if order == 'best_last':
    chosen = chosen[::-1]
  return _log_probs(peer, sum([example.head, *chosen, example.tail], []), example.target)


def _side_by_side(peer, example, passages):
  """One text whose passages do not see each other and stand at the same positions."""
  texts = [example.head, *(example.passages[i] for i in passages), example.tail + example.target]
  head = len(example.head)
  longest = max([len(text) for text in texts[1:-1]], default=0)
  starts = [0, *[head] * (len(texts) - 2), head + longest]
  owner = np.concatenate([[i] * len(text) for i, text in enumerate(texts)])
  positions = [start + i for start, text in zip(starts, texts) for i in range(len(text))]
  order = np.arange(len(owner))
  seen = (owner[None] == owner[:, None]) | (owner[None] == 0) | (owner[:, None] == len(texts) - 1)
  mask = seen & (order[None] <= order[:, None])
  return _log_probs(peer, sum(texts, [])[: -len(example.target)], example.target, positions, mask)


def _read(peer, reading, example, passages):
  return (_side_by_side if reading == 'parallel' else _in_one_prompt)(peer, example, passages)


READINGS = ['in_context', 'parallel']


def _jit(function, *arguments):
  return jax.jit(function)(*arguments)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('reading', READINGS)
def test_likelihoods_together_and_without_each_passage(peer, params, reading, shared):
  model, batch = _model(reading=reading), _batch(shared=shared)
  score, effects = _jit(model.score, params, batch), _jit(model.passage_effects, params, batch)
  for row in range(2):
    example = Example.of(batch, row)
    every = range(len(example.passages))
    whole = _read(peer, reading, example, every)[0].sum()
    np.testing.assert_allclose(score[row], whole, atol=1e-4)
    for i in every:
      without = _read(peer, reading, example, [j for j in every if j != i])[0].sum()
      np.testing.assert_allclose(effects[row, i], whole - without, atol=2e-4)
  assert effects[1, 2] == 0


def test_best_first(peer, params):
  model, batch = _model(reading='in_context', passage_order='best_first'), _batch()
  score = _jit(model.score, params, batch)
  for row in range(2):
    example = Example.of(batch, row)
    every = range(len(example.passages))
    expected = _in_one_prompt(peer, example, every, 'best_first')[0].sum()
    np.testing.assert_allclose(score[row], expected, atol=1e-4)


@pytest.mark.parametrize('chunk', [None, 1])
@pytest.mark.parametrize('reading', READINGS)
def test_gold_scores(peer, params, reading, chunk):
  model, batch = _model(reading=reading, gold_chunk=chunk), _batch()
  kinds = {name: kind.of(model) for name, kind in distillation.GOLD_SCORES.items() if kind.teaches}

  def scores(params, batch):
    read = batch.without_empty_slots(SLOTS)
    passes = model.make_gold_passes(params, read)
    return {name: kind.scores(passes, read) for name, kind in kinds.items()}

  found = _jit(scores, params, batch)
  for row in range(2):
    example = Example.of(batch, row)
    count, length = len(example.passages), len(example.target)
    _, together = _read(peer, reading, example, range(count))
    for i in range(count):
      alone, _ = _read(peer, reading, example, [i])
      np.testing.assert_allclose(found['emdr2'][row, i, :length], alone, atol=1e-4)
      np.testing.assert_allclose(found['perplexity'][row, i], alone.sum(), atol=1e-4)
      others = [j for j in range(count) if j != i]
      without, _ = _read(peer, reading, example, others)
      np.testing.assert_allclose(found['leave_one_out'][row, i], -without.sum(), atol=1e-4)
      at = len(example.head)
      before = range(i) if reading == 'parallel' else range(i + 1, count)
      at += sum(len(example.passages[j]) for j in before)
      expected = _attention(together, at, len(example.passages[i]), length)
      np.testing.assert_allclose(found['attention'][row, i], expected, rtol=1e-4)


def _attention(out, at, size, targets):
  """Probability times norm of the value, over layers, heads, target and passage tokens."""
  total = 0.0
  for layer, weights in enumerate(out.attentions):
    values = out.past_key_values.layers[layer].values[0]  # [kv_heads, n, e]
    norms = values.norm(dim=-1).repeat_interleave(weights.shape[1] // len(values), 0)
    queries = weights[0][:, -targets - 1 : -1]
    total += (queries * norms[:, None]).mean(0)[:, at : at + size].sum().item()
  return total / (size * targets * len(out.attentions))


@pytest.mark.parametrize('reading', ['rag_sequence', 'rag_token'])
def test_marginals(peer, params, reading):
  model, batch = _model(reading=reading, gold_score='none', scale_scores=False), _batch()
  score = _jit(model.score, params, batch)
  prior = np.asarray(model.log_prior(params, batch))
  for row in range(2):
    example = Example.of(batch, row)
    each = np.stack([_in_one_prompt(peer, example, [i])[0] for i in range(len(example.passages))])
    likelihood = rag.sequence_nll if reading == 'rag_sequence' else rag.token_nll
    mask = np.ones((1, each.shape[1]), bool)
    expected = -likelihood(prior[row : row + 1, : len(each)], each[None], mask)[0]
    np.testing.assert_allclose(score[row], expected, atol=1e-4)


@pytest.mark.parametrize('reading', READINGS)
def test_choices(peer, params, reading):
  model, batch = _model(reading=reading), _batch()
  found = _jit(lambda p, b: model.choice_logits(p, b, CHOICES), params, batch)
  for row in range(2):
    example = Example.of(batch, row)
    for i, target in enumerate(([39, 7, 1], [39, 3, 9, 1])):
      asked = dataclasses.replace(example, target=target)
      expected = _read(peer, reading, asked, range(len(example.passages)))[0].sum()
      np.testing.assert_allclose(found[row, i], expected, atol=1e-4)


@pytest.mark.parametrize('reading', READINGS)
def test_losses_and_gradients_are_of_prompts_put_together_by_hand(peer, params, reading):
  """The reader's loss alone, whose gradient the retriever's does not touch."""
  model, batch = _model(reading=reading, train_retriever=False), _batch(shared=True)

  def loss(reader):
    return model.loss_fn(params | {'reader': reader}, batch, None).reader.total

  value, gradients = jax.jit(jax.value_and_grad(loss))(params['reader'])
  total = torch.zeros(())
  peer.zero_grad()
  for row in range(2):
    example = Example.of(batch, row)
    total = total + _loss(peer, reading, example)
  total.backward()
  np.testing.assert_allclose(value, total.item(), rtol=1e-5)
  theirs = decoder_peers.params_of(
    {name: p.grad for name, p in peer.named_parameters()}, FAMILY.config(), 0.0
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-3), gradients, theirs
  )


def _loss(peer, reading, example):
  _, out = _read(peer, reading, example, range(len(example.passages)))
  target = torch.tensor(example.target)
  logits = out.logits[0][-len(target) - 1 : -1]
  return torch.nn.functional.cross_entropy(logits, target, reduction='sum')


def test_a_given_context_stands_for_its_tokens(params):
  model, batch = _model(reading='parallel'), _batch(shared=True)
  read = batch.without_empty_slots(SLOTS)
  passes = model.prompt_passes(params, read)
  given = dataclasses.replace(
    batch, head_context=passes.head[0], passages_context=passes.passages_context
  )
  np.testing.assert_allclose(model.score(params, given), model.score(params, batch), atol=1e-5)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'reading': 'fusion'}, "'fusion' is not what a decoder-only reader .* 'rag_sequence'"),
    ({'reading': 'in_context', 'reader_config': T5Config()}, "a T5 reader can do; choose 'fusion'"),
    ({'reading': 'in_context', 'passage_order': 'worst'}, 'passage_order'),
    ({'reading': 'rag_token'}, "set gold_score = 'none'"),
  ],
)
def test_readings_that_a_reader_cannot_do(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(_model(reading='in_context'), **changes)
