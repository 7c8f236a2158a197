"""RAG over BART and DPR, from files to answers: train, resume, evaluate."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
import tokenizers

from ralm_jax.evaluation.task import EvaluationTask
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.training import optimizers
from tests import tiny

VOCABULARY = 400


@dataclasses.dataclass(frozen=True)
class World:
  data: tiny.Data
  reader_vocabulary: pathlib.Path
  corpus: pathlib.Path


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  from ralm_jax.data.corpus import passage_store as corpus_lib

  data = tiny.make_data(tmp_path_factory.mktemp('rag'))
  tokenizer = tokenizers.ByteLevelBPETokenizer()
  tokenizer.train_from_iterator(
    [f'{p["title"]} / {p["text"]} //' for p in tiny.passages()]
    + [q['question'] for q in tiny.questions()],
    vocab_size=VOCABULARY,
    show_progress=False,
    special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'],
  )
  vocabulary = data.folder / 'tokenizer.json'
  tokenizer.save(str(vocabulary))
  corpus = data.folder / 'bart_corpus'
  corpus_lib.build_corpus(
    data.passages, corpus, vocabulary, data.retriever_vocabulary, n_workers=1, progress=False
  )
  return World(data, vocabulary, corpus)


def _train(world, model_dir, steps, **changes):
  from ralm_jax.data import pipeline
  from ralm_jax.models import bart, bert, retrieval_lm
  from ralm_jax.runs import training
  from ralm_jax.tasks import qa
  from ralm_jax.training import partitioning

  text = tiny.make_text(
    target_format='{answer}',
    reader_format='{title} / {text} // {query}',
    retriever_format='{title} [SEP] {text}',
  )
  vocabularies = dict(
    reader_vocabulary=str(world.reader_vocabulary),
    retriever_vocabulary=str(world.data.retriever_vocabulary),
  )
  model = retrieval_lm.RetrievalLM(
    bart.BartConfig(
      vocab_size=VOCABULARY,
      emb_dim=16,
      num_heads=2,
      num_encoder_layers=1,
      num_decoder_layers=1,
      encoder_mlp_dim=32,
      decoder_mlp_dim=32,
      max_positions=96,
      dropout_rate=0.1,
      embedding_init_stddev=0.3,
    ),
    bert.BertConfig(
      vocab_size=128,
      emb_dim=16,
      num_heads=2,
      num_layers=1,
      mlp_dim=32,
      max_positions=64,
      embedding_init_stddev=0.5,
    ),
    pooling='cls',
    tied_retriever=False,
    scale_scores=False,
    temperature_score=1.0,
    gold_score='none',
    **{'reading': 'rag_token', 'query_side': 'stored', **changes},
  )
  return training.train(
    model=model,
    text=text,
    model_dir=str(model_dir),
    total_steps=steps,
    data=pipeline.DatasetConfig(
      qa.jsonl_task('tiny_rag', train=str(world.data.questions), text=text, **vocabularies),
      batch_size=4,
      seed=0,
    ),
    optimizers={name: optimizers.adamw(1e-2) for name in ('reader', 'retriever')},
    retrieval=training.RetrievalConfig(
      corpus=str(world.corpus),
      retry_for_s=60.0,
      embed_batch_size=16,
      index=str(world.data.folder / f'index_{model.reading}'),
    ),
    checkpoints=training.CheckpointConfig(period=2),
    partitioner=partitioning.Partitioner(devices=jax.devices()[:1]),
    stats_period=1,
    recall_skip=0,
    vocabularies=training.Vocabularies(*vocabularies.values()),
  )


@functools.cache
def _trained(world, reading):
  folder = world.data.folder / f'run_{reading}'
  state = _train(world, folder, 4, reading=reading)
  return folder, state


def test_the_passage_encoder_stays_and_all_else_learns(world):
  from ralm_jax.runs import opening as runs

  folder, state = _trained(world, 'rag_token')
  first = runs.open_checkpoint(folder / 'checkpoint_2').params
  towers = state.params['retriever']
  jax.tree.map(
    np.testing.assert_array_equal, towers['passage_encoder'], first['retriever']['passage_encoder']
  )
  for now, then in (
    (towers['query_encoder'], first['retriever']['query_encoder']),
    (state.params['reader'], first['reader']),
  ):
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), now, then)
    assert sum(jax.tree.leaves(moved)) > len(jax.tree.leaves(moved)) / 2


@pytest.mark.slow
def test_a_run_in_two_parts_ends_with_the_same_parameters(world, tmp_path):
  _, expected = _trained(world, 'rag_token')
  _train(world, tmp_path / 'run', 2)
  state = _train(world, tmp_path / 'run', 4)
  jax.tree.map(np.testing.assert_array_equal, state.params, expected.params)


@pytest.mark.parametrize(
  'reading', ['rag_token', pytest.param('rag_sequence', marks=pytest.mark.slow)]
)
def test_eval_answers_by_the_checkpoint_s_own_reading(reading, world, tmp_path):
  from ralm_jax.runs import evaluation as eval_lib

  folder, _ = _trained(world, reading)
  decodings = {
    'rag_token': [{}, {'num_beams': 3, 'length_penalty': 0.0}],
    'rag_sequence': [
      {'num_beams': 2, 'rag_decoding': 'thorough'},
      {'num_beams': 2, 'rag_decoding': 'fast'},
    ],
  }
  likelihoods = []
  for i, decoding in enumerate(decodings[reading]):
    output = tmp_path / str(i)
    metrics = eval_lib.evaluate(
      str(folder),
      EvaluationTask.make(questions=str(world.data.questions), **decoding),
      IndexSource(str(world.data.folder / f'index_{reading}')),
      str(output),
      batch_size=8,
    )
    assert metrics['count'] == tiny.COUNT
    rows = [json.loads(line) for line in (output / 'predictions.jsonl').read_text().splitlines()]
    for row in rows:
      total = sum(p['probability'] for p in row['passages'])
      assert abs(total - 1) < 1e-4
      # DPR's plain inner products, not Atlas's scaled ones.
      best, second = row['passages'][:2]
      ratio = best['probability'] / max(second['probability'], 1e-30)
      assert np.log(ratio) == pytest.approx(best['score'] - second['score'], abs=1e-2)
    likelihoods.append([row['log_probability'] for row in rows])
  first, second = (np.mean(values) for values in likelihoods)
  # Two beams find likelier answers; scoring under all passages only adds.
  assert second > first if reading == 'rag_token' else (first >= second - 1e-4)
