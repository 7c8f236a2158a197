"""Greedy and beam ids of T5 and BART are those of transformers' `generate`."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from ralm_jax.decoding import decode
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.interop import huggingface
from ralm_jax.models.fid import BartFusionInDecoder, FusionInDecoder, PassageReader
from ralm_jax.models.generation import CachedReader

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

BATCH, LENGTH, VOCAB = 10, 7, 29
MAX_LENGTH = 11
CASES = [
  dict(),
  dict(num_beams=2),
  dict(num_beams=3, early_stopping=True, num_return=3),
  dict(num_beams=4, length_penalty=2.0, min_length=5, num_return=4),
  dict(num_beams=4, length_penalty=0.5, early_stopping='never', num_return=3),
  dict(num_beams=3, length_penalty=-1.0, min_length=3, num_return=3),
]
GRID = [
  dict(
    num_beams=num_beams,
    length_penalty=length_penalty,
    early_stopping=early_stopping,
    min_length=4 * (num_beams % 2),
    num_return=num_beams,
  )
  for num_beams, length_penalty, early_stopping in itertools.product(
    (2, 3, 4, 5), (0.5, 1.0, 2.0), (False, True, 'never')
  )
]


@dataclasses.dataclass
class Pair:
  """The same model on both sides, and what it reads."""

  peer: Any
  reader: PassageReader
  params: Any
  tokens: np.ndarray
  mask: np.ndarray
  eos_id: int
  forced_first_id: int | None = None
  forced_last_id: int | None = None
  # What `theirs` has given already; it is the slower side.
  known: dict[Any, Any] = dataclasses.field(default_factory=dict, init=False)

  @property
  def config(self):
    return self.reader.config

  def inputs(self, repeats=1):
    return dict(
      input_ids=torch.tensor(self.tokens).long().repeat_interleave(repeats, 0),
      attention_mask=torch.tensor(self.mask).long().repeat_interleave(repeats, 0),
    )

  def ours(self, options, max_length=MAX_LENGTH):
    def predict(params, tokens, mask):
      encoded = self.reader.apply({'params': params}, tokens, mask, method='encode')
      stepper = CachedReader(self.reader, params, encoded, mask, max_length)
      return decode.decode(
        stepper,
        options,
        max_length=max_length,
        eos_id=self.eos_id,
        pad_id=self.config.pad_id,
        forced_first_id=self.forced_first_id,
        forced_last_id=self.forced_last_id,
      )

    compiled = jax.jit(predict, compiler_options={'xla_backend_optimization_level': 0})
    return jax.tree.map(np.asarray, compiled(self.params, self.tokens, self.mask))

  def theirs(self, options, max_length=MAX_LENGTH):
    """Ids [batch, num_return, max_length] and the scores that rank beams."""
    key = (options, max_length, self.eos_id)
    if key not in self.known:
      self.known[key] = self._generate(options, max_length)
    return self.known[key]

  def _generate(self, options, max_length):
    with torch.no_grad():
      output = self.peer.generate(
        **self.inputs(),
        do_sample=False,
        num_beams=options.num_beams,
        num_return_sequences=options.num_return,
        max_new_tokens=max_length,
        min_new_tokens=options.min_length or None,
        length_penalty=options.length_penalty,
        early_stopping=options.early_stopping,
        eos_token_id=self.eos_id,
        pad_token_id=self.config.pad_id,
        forced_bos_token_id=self.forced_first_id,
        forced_eos_token_id=self.forced_last_id,
        return_dict_in_generate=True,
        output_scores=True,
      )
    rows = output.sequences.numpy()[:, 1:]
    tokens = np.full((len(rows), max_length), self.config.pad_id)
    tokens[:, : rows.shape[1]] = rows
    tokens = np.where(_produced(tokens, self.eos_id), tokens, self.config.pad_id)
    scores = getattr(output, 'sequences_scores', None)
    shape = (len(self.tokens), options.num_return)
    return (tokens.reshape(*shape, -1), None if scores is None else scores.numpy().reshape(shape))

  def log_probs(self, tokens):
    """Their own sums of log-probabilities of whole sequences, teacher-forced."""
    batch, n, length = tokens.shape
    flat = torch.tensor(tokens.reshape(-1, length)).long()
    start = torch.full_like(flat[:, :1], self.config.decoder_start_id)
    with torch.no_grad():
      logits = self.peer(
        **self.inputs(n), decoder_input_ids=torch.cat([start, flat[:, :-1]], 1)
      ).logits
    chosen = torch.log_softmax(logits.double(), -1).gather(-1, flat[..., None])
    produced = _produced(tokens.reshape(-1, length), self.eos_id)
    return (chosen[..., 0].numpy() * produced).sum(-1).reshape(batch, n)


def _produced(tokens, eos_id):
  """True up to the first end of sequence, which is included."""
  ended = np.cumsum(tokens == eos_id, axis=-1)
  return (ended - (tokens == eos_id)) == 0


def _lengths(tokens, eos_id):
  return _produced(tokens, eos_id).sum(-1)


def _inputs(pad_id, seed=0):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(3, LENGTH + 1, BATCH)
  mask = np.arange(LENGTH) < lengths[:, None]
  tokens = rng.integers(4, VOCAB, (BATCH, LENGTH))
  return np.where(mask, tokens, pad_id).astype(np.int32), mask


@pytest.fixture(scope='module')
def t5_pair(tmp_path_factory):
  folder = tmp_path_factory.mktemp('t5')
  torch.manual_seed(0)
  peer = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      vocab_size=VOCAB,
      d_model=16,
      d_kv=8,
      d_ff=32,
      num_layers=1,
      num_heads=2,
      feed_forward_proj='gated-gelu',
      tie_word_embeddings=False,
      dropout_rate=0.0,
      decoder_start_token_id=0,
      initializer_factor=1.0,
    )
  ).eval()
  with torch.no_grad():
    for name, parameter in peer.named_parameters():
      if 'EncDecAttention' in name:
        # The decoder listens: examples get different answers.
        parameter.mul_(3.0)
  peer.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn(VOCAB, 16))
  peer.config.save_pretrained(folder)
  torch.save(peer.state_dict(), folder / 'pytorch_model.bin')
  config, params = huggingface.load_t5(folder)
  pair = Pair(peer, FusionInDecoder(config), params, *_inputs(0), eos_id=1)
  # Of all tokens, that one ends an answer with which greedy answers end at the
  # most different lengths.
  free, _ = pair.theirs(DecodingOptions())
  pair.eos_id = max(range(1, VOCAB), key=lambda token: len(set(_lengths(free, token).ravel())))
  return pair


@pytest.fixture(scope='module')
def bart_pair(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bart')
  torch.manual_seed(1)
  peer = transformers.BartForConditionalGeneration(
    transformers.BartConfig(
      vocab_size=VOCAB,
      d_model=16,
      encoder_layers=1,
      decoder_layers=1,
      encoder_attention_heads=2,
      decoder_attention_heads=2,
      encoder_ffn_dim=32,
      decoder_ffn_dim=32,
      max_position_embeddings=24,
      init_std=0.6,
      dropout=0.0,
      scale_embedding=True,
    )
  ).eval()
  with torch.no_grad():
    # Answers of random weights never end otherwise.
    peer.final_logits_bias[0, 2] = 2.0
  peer.generation_config.forced_bos_token_id = 0
  peer.save_pretrained(folder)
  config, params = huggingface.load_bart(folder)
  pair = Pair(
    peer,
    BartFusionInDecoder(config),
    params,
    *_inputs(1),
    eos_id=2,
    forced_first_id=config.forced_first_id,
    forced_last_id=config.forced_last_id,
  )
  assert (pair.forced_first_id, pair.forced_last_id) == (0, 2)
  return pair


def _check(pair, options, max_length=MAX_LENGTH):
  tokens, scores = pair.theirs(options, max_length)
  decoded = pair.ours(options, max_length)
  np.testing.assert_array_equal(decoded.tokens, tokens)
  np.testing.assert_allclose(decoded.log_probs, pair.log_probs(tokens), atol=1e-4)
  if scores is None:
    np.testing.assert_array_equal(decoded.scores, decoded.log_probs)
  else:
    np.testing.assert_allclose(decoded.scores, scores, rtol=1e-5, atol=1e-5)
  return tokens


@pytest.mark.parametrize('case', CASES, ids=str)
def test_t5(t5_pair, case):
  options = DecodingOptions(**case)
  tokens = _check(t5_pair, options)
  assert _lengths(tokens, t5_pair.eos_id).min() >= options.min_length


@pytest.mark.parametrize('case', CASES, ids=str)
def test_bart_with_forced_tokens(bart_pair, case):
  tokens = _check(bart_pair, DecodingOptions(**case))
  assert (tokens[..., 0] == 0).all()
  assert ((tokens[..., -1] == 2) | (tokens[..., -1] == 1)).all()


def test_max_length_of_one(t5_pair, bart_pair):
  options = DecodingOptions(num_beams=3, num_return=2)
  _check(t5_pair, options, max_length=1)
  _check(t5_pair, DecodingOptions(), max_length=1)
  # At its only place both the first and the last token are forced.
  tokens = _check(bart_pair, DecodingOptions(num_beams=2), max_length=1)
  assert (tokens == 2).all()


def test_never_reckons_with_the_greatest_length(t5_pair):
  # Inputs among which both rules give different answers.
  tokens, mask = _inputs(0, seed=9)
  pair = dataclasses.replace(t5_pair, tokens=tokens, mask=mask)
  found = [
    _check(pair, DecodingOptions(num_beams=2, length_penalty=2.0, early_stopping=rule))
    for rule in (False, 'never')
  ]
  assert (found[0] != found[1]).any()


@pytest.mark.parametrize('family', ['t5', 'bart'])
def test_the_cases_tell_options_apart(family, request):
  """Their ids are not the same whatever one asks for, nor all of one length."""
  pair = request.getfixturevalue(f'{family}_pair')
  found = [pair.theirs(DecodingOptions(**case))[0][:, 0] for case in CASES]
  for tokens in found[:2]:
    assert len(set(_lengths(tokens, pair.eos_id))) >= 3, tokens
  assert len({tokens.tobytes() for tokens in found}) >= 5


@pytest.mark.slow
@pytest.mark.parametrize('case', GRID, ids=str)
def test_grid(t5_pair, bart_pair, case):
  options = DecodingOptions(**case)
  _check(t5_pair, options)
  _check(bart_pair, options)
