"""Answers of decoder-only readers, against whole prompts decoded token by token."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ralm_jax.checkpoints import specification
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.questions.file_passages import FilePassages
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.questions.rows import FilePassage
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.decoding.options import DecodingOptions
from ralm_jax.evaluation import prediction_files, summary
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.demonstrations import Pool
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.task import PassageOptions, ReadingOptions, ScoringOptions
from ralm_jax.models import bert, decoder_config, retrieval_lm
from ralm_jax.retrieval import prompt_assembler
from ralm_jax.training.partitioning import Partitioner
from tests import decoder_folders, tiny

LENGTH = 6


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  folder = tmp_path_factory.mktemp('world')
  data = tiny.make_data(folder)
  reader = vocabularies.load_vocabulary(
    decoder_folders.write(folder / 'reader', 'smollm2', size=500)
  )
  text = TextConfig(
    question_format='Question: {question}\nAnswer:',
    target_format=' {answer}',
    query_length=40,
    retriever_passage_length=64,
    passage_length=100,
    reader_query_length=80,
    target_length=LENGTH,
    n_passages=3,
  )
  retriever = vocabularies.load_vocabulary(data.retriever_vocabulary)
  model = retrieval_lm.RetrievalLM(
    reader_config=decoder_config.DecoderConfig(
      vocab_size=reader.vocab_size,
      emb_dim=32,
      num_heads=2,
      num_kv_heads=1,
      head_dim=16,
      num_decoder_layers=2,
      mlp_dim=64,
      max_positions=2000,
      eos_id=reader.eos_id,
      pad_id=reader.pad_id,
    ),
    retriever_config=bert.BertConfig(
      vocab_size=256, emb_dim=16, num_heads=2, num_layers=1, mlp_dim=32, max_positions=64
    ),
    reading='in_context',
  )
  spec = Specification(model, QueryTokenizer(text, reader, retriever))
  spec.check()
  params = jax.tree.map(
    lambda leaf: leaf.unbox() if hasattr(leaf, 'unbox') else leaf,
    model.init(jax.random.key(1)),
    is_leaf=lambda leaf: hasattr(leaf, 'unbox'),
  )
  # Likelier tokens are much likelier, and the newline is among them.
  kernel = params['reader']['logits_dense']['kernel'] * 30
  kernel = kernel.at[:, reader.encode_segment('\n')[0]].multiply(4)
  params['reader']['logits_dense']['kernel'] = kernel
  return types.SimpleNamespace(
    spec=spec, params=params, partitioner=Partitioner(), data=data, folder=folder
  )


def questions():
  return [
    Question(
      id=row['id'],
      question=row['question'],
      answers=tuple(row['answers']),
      gold_passage_ids=(),
      line=i + 1,
      path='asked.jsonl',
      passages=tuple(
        FilePassage(p['id'], p['title'], p['text']) for p in tiny.passages()[i : i + 1 + i % 3]
      ),
    )
    for i, row in enumerate(tiny.questions()[:5])
  ]


@functools.partial(jax.jit, static_argnums=0)
def _logits(reader, params, tokens, length):
  mask = jnp.arange(len(tokens)) < length
  return reader.apply({'params': params}, tokens[None], mask[None])[0, length - 1]


def expected(world, prompt, stops=('\n',)):
  """Greedy tokens of a prompt, read anew for each, their log-probability, and whether they end."""
  vocabulary, model = world.spec.tokenizer.reader_vocabulary, world.spec.model
  ids, out, total = vocabulary.encode_segment(prompt), [], 0.0
  eos_id = vocabulary.eos_id
  others = [i for stop in stops for i in vocabulary.stop_ids(stop)]
  while len(out) < LENGTH:
    tokens = np.zeros(1024, int)
    tokens[: len(ids + out)] = ids + out
    logits = _logits(model.reader, world.params['reader'], tokens, len(ids + out))
    log_probs = np.array(jax.nn.log_softmax(logits))
    log_probs[eos_id] = jax.nn.logsumexp(log_probs[np.array([eos_id, *others])])
    log_probs[others] = -np.inf
    token = int(np.argmax(log_probs))
    total += log_probs[token]
    if token == eos_id:
      return out, total, True
    out.append(token)
  return out, total, False


def prompt_of(question, n=3):
  lines = [f'Context: {p.title}. {p.text}\n' for p in question.passages[:n][::-1]]
  return f'{"".join(lines)}Question: {question.question}\nAnswer:'


def evaluator(world, spec=None, passages='file', shown=None, **options):
  return Evaluator(
    spec or world.spec,
    world.partitioner,
    None,
    batch_size=8,
    passages=PassageOptions(passages_from=passages),
    shown=shown,
    **options,
  )


def test_answers_are_those_of_whole_prompts(world, tmp_path):
  shown = tiny.write_jsonl(
    tmp_path / 'shown.jsonl',
    [
      {**row, 'passages': tiny.passages()[i : i + 1]}
      for i, row in enumerate(tiny.questions())
      if i >= 30
    ],
  )
  pool = Pool.read(ReadingOptions(demonstrations=str(shown), num_demonstrations=2), 'qa')
  head = ''.join(
    f'Context: {q.passages[0].title}. {q.passages[0].text}\n'
    f'Question: {q.question}\nAnswer: {q.answers[0]}\n'
    for q in pool.chosen()
  )
  decode = world.spec.tokenizer.reader_vocabulary.decode
  for shown, before in ((None, ''), (pool, head)):
    answers = evaluator(world, shown=shown).answer(world.params, questions())
    ended = set()
    for question, answer in zip(questions(), answers):
      ids, log_prob, ends = expected(world, before + prompt_of(question))
      assert answer.prediction == decode(ids).strip()
      np.testing.assert_allclose(answer.log_probability, log_prob, atol=2e-3)
      assert answer.ended == ends
      assert all(one.text_read is None for one in answer.passages)
      ended.add(ends)
  assert True in ended


@pytest.mark.parametrize('from_, reading', [('none', None), ('none', 'rag_token')])
def test_closed_book(world, from_, reading):
  spec = specification.without_passages(specification.with_reading(world.spec, reading))
  answers = evaluator(world, spec, passages=from_).answer(world.params, questions())
  decode = world.spec.tokenizer.reader_vocabulary.decode
  for question, answer in zip(questions(), answers):
    ids, log_prob, _ = expected(world, f'Question: {question.question}\nAnswer:')
    assert answer.prediction == decode(ids).strip() and answer.passages == ()
    np.testing.assert_allclose(answer.log_probability, log_prob, atol=2e-3)


@pytest.mark.parametrize('reading', ['rag_sequence', 'rag_token', 'parallel', 'in_context'])
def test_every_reading_answers(world, reading):
  spec = specification.with_reading(world.spec, reading, 'best_first')
  scored = reading == 'in_context'
  options = ScoringOptions(with_loss=scored, passage_effects=scored)
  answers = evaluator(world, spec, scoring=options).answer(world.params, questions())
  decode = world.spec.tokenizer.reader_vocabulary.decode
  # The first question has one passage, with which all readings are one.
  ids, log_prob, _ = expected(world, prompt_of(questions()[0]))
  assert answers[0].prediction == decode(ids).strip()
  np.testing.assert_allclose(answers[0].log_probability, log_prob, atol=2e-3)
  assert not scored or all(np.isfinite(answer.loss) for answer in answers)


def test_stop_strings_of_several_tokens(world):
  """The text is cut there, and the likelihood is of what is shown."""
  question = questions()[1]
  bare = specification.with_text(world.spec, stop_strings=())
  ids, *_ = expected(world, prompt_of(question), stops=())
  vocabulary = world.spec.tokenizer.reader_vocabulary
  text = vocabulary.decode(ids)
  assert len(ids) == LENGTH
  stop = vocabulary.decode(ids[1:3])
  if len(vocabulary.encode_segment(stop)) == 1 or text.find(stop) < len(vocabulary.decode(ids[:1])):
    pytest.skip('the tokens make no such text')
  spec = specification.with_text(bare, stop_strings=(stop,))
  (whole,) = evaluator(world, bare).answer(world.params, [question])
  (cut,) = evaluator(world, spec).answer(world.params, [question])
  assert not whole.ended and cut.ended
  assert cut.prediction == text[: text.index(stop)].strip()
  assert cut.log_probability > whole.log_probability


def test_what_never_ends_is_said(world, tmp_path):
  bare = specification.with_text(world.spec, stop_strings=())
  options = AnswerOptions(max_length=LENGTH + 30, decoding=DecodingOptions())
  found = evaluator(world, bare, answering=options)
  assert found.spec.text.target_length == LENGTH + 30
  means = found.evaluate(world.params, questions(), output=tmp_path)
  records = prediction_files.read(tmp_path / 'predictions.jsonl')
  unended = sum(record.get('unended', False) for record in records)
  assert unended and means['noted']['unended'] == unended
  assert any('reached max_length without a stop string' in one for one in summary.notes(means))


def test_vocabularies_of_another_kind(world):
  reader = vocabularies.load_vocabulary(world.data.reader_vocabulary)
  tokenizer = QueryTokenizer(tiny.make_text(), reader, world.spec.tokenizer.retriever_vocabulary)
  with pytest.raises(ValueError, match="of a reader with an encoder .*, the model's is a decoder"):
    Specification(world.spec.model, tokenizer).check()
  with pytest.raises(ValueError, match='a decoder-only reader, the model'):
    dataclasses.replace(world.spec, model=tiny.make_model()).check()


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'prompt_length': 1995}, 'prompt_length 1995 and target_length 6 .* the 2000 positions'),
    ({'reader_query_length': 1995}, 'lower reader_query_length'),
  ],
)
def test_prompts_longer_than_the_positions(world, changes, message):
  with pytest.raises(ValueError, match=message):
    specification.with_text(world.spec, **changes)


def test_readings_that_a_reader_does_not_have(world):
  with pytest.raises(ValueError, match="'fusion' is not what a decoder-only reader can do"):
    specification.with_reading(world.spec, 'fusion')
  t5 = types.SimpleNamespace(tokenizer=types.SimpleNamespace(prompts=None), model=tiny.make_model())
  with pytest.raises(ValueError, match='leave --passage_order out'):
    specification.with_reading(t5, passage_order='best_first')


@pytest.mark.parametrize('changes', [{'prompt_style': 'chat'}, {'system_prompt': 'Be brief.'}])
def test_prompts_are_not_of_readers_with_an_encoder(world, changes):
  reader = vocabularies.load_vocabulary(world.data.reader_vocabulary)
  tokenizer = QueryTokenizer(tiny.make_text(), reader, world.spec.tokenizer.retriever_vocabulary)
  spec = Specification(tiny.make_model(), tokenizer)
  spec.check()
  with pytest.raises(ValueError, match=f'{next(iter(changes))} .* is of decoder-only readers'):
    specification.with_text(spec, **changes)


def test_training_batches(world):
  """What is left out of a prompt is not learnt from; the loss counts targets alone."""
  tokenizer, asked = world.spec.tokenizer, questions()
  passages = [passage for question in asked for passage in question.passages]
  store = FilePassages(passages, tokenizer.reader_vocabulary, tokenizer.retriever_vocabulary)
  rows = np.full((len(asked), 3), -1)
  row = 0
  for i, question in enumerate(asked):
    rows[i, : len(question.passages)] = row + np.arange(len(question.passages))
    row += len(question.passages)
  queries = tokenizer.batch([q.question for q in asked], [q.answers[0] for q in asked])
  whole = prompt_assembler.assembler_of(world.spec, store).reader_batch(queries, rows)
  # Room for two of the three passages.
  length = int((whole.reader_mask.sum((1, 2)) + whole.tail_mask.sum(-1)).max()) - 60
  spec = specification.with_text(world.spec, prompt_length=length)
  batch = prompt_assembler.assembler_of(spec, store).reader_batch(queries, rows)
  assert 0 < batch.passage_mask.sum() < (rows >= 0).sum()
  assert batch.prompt_length == length and batch.retriever_tokens.shape[:2] == rows.shape
  found = jax.jit(lambda params, arrays: spec.model.loss_fn(params, arrays, None))(
    world.params, jax.tree.map(jnp.asarray, batch)
  )
  assert found.reader.weight == sum(len(tokenizer.target(q.answers[0])) for q in asked)
  assert np.isfinite(found.reader.total) and np.isfinite(found.retriever.total)
