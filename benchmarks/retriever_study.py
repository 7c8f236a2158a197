"""Which loss makes the retriever better, and from which start?

  python benchmarks/retriever_study.py --output STUDY            # documentation
  python benchmarks/retriever_study.py --output STUDY_QA --corpus CORPUS \\
      --train train.jsonl --questions dev.jsonl                   # your questions

Every cell of the table is one training run: closed-book, a fixed retriever,
and each of the four losses, for several seeds and for two starts of the
retriever, `weak` (a few steps of a warm start on crops) and `warm`. All runs of
a seed begin with the same parameters and see the same examples in the same
order; the index is refreshed on the same schedule.

On the documentation of Python (the quickstart's corpus) the reader has learnt
to copy from a passage before, and is kept as it is: trained on passages that do
not hold the answer it unlearns reading. On your own questions it begins from
scratch (--reader_learning_rate 2e-3). Nothing helps either: no gold passage is
put among those retrieved, no titles are reassigned, and a question whose passage
was not found trains as it is. A cell once computed is kept in --output, and the
command may be stopped and repeated. The peer is the fixed retriever.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import time

import jax
import numpy as np
import reporting

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.pretext.crops import CropConfig
from ralm_jax.data.questions import reading
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.evaluation.task import PassageOptions
from ralm_jax.files import quiet
from ralm_jax.models import copying_init
from ralm_jax.models.bert import BertConfig
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.models.t5 import T5Config
from ralm_jax.quickstart import main as quickstart_lib
from ralm_jax.quickstart.main import Quickstart
from ralm_jax.quickstart.recipe import Recipe
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import embedding, opening, training
from ralm_jax.runs.training import CheckpointConfig, RetrievalConfig
from ralm_jax.training import crop_training, optimizers, schedules, train_state
from ralm_jax.training.crop_training import CropSampler, WarmStartConfig

LOSSES = ('perplexity', 'attention', 'leave_one_out', 'emdr2')
# Gold scores of attention are means of probabilities times norms: small.
GOLD_TEMPERATURES = {'perplexity': 1.0, 'leave_one_out': 1.0, 'emdr2': 1.0}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--output', required=True, metavar='DIR')
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  parser.add_argument('--starts', nargs='+', default=['weak', 'warm'])
  parser.add_argument('--losses', nargs='+', default=list(LOSSES))
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument(
    '--reader_steps', type=int, default=600, help='of copying, before; on the documentation'
  )
  parser.add_argument('--weak_steps', type=int, default=80)
  parser.add_argument('--warm_steps', type=int, default=700)
  parser.add_argument('--batch_size', type=int, default=32)
  parser.add_argument('--n_passages', type=int, default=10)
  parser.add_argument('--n_context', type=int, default=1)
  parser.add_argument('--refresh', default='50', help="a refresh schedule; 'never' keeps the index")
  parser.add_argument('--retriever_learning_rate', type=float, default=1e-4)
  parser.add_argument(
    '--reader_learning_rate', type=float, default=0.0, help='0 keeps the reader as it is'
  )
  parser.add_argument('--attention_temperature', type=float, default=0.01)
  parser.add_argument('--eval_questions', type=int, default=600)
  parser.add_argument('--corpus', metavar='CORPUS')
  parser.add_argument('--train', metavar='FILE')
  parser.add_argument('--questions', metavar='FILE')
  parser.add_argument('--name', default='retriever_study', help='of the result')
  return parser.parse_args(arguments)


class Study:
  """One corpus: what all cells of a seed share, and the cells."""

  def __init__(self, flags: argparse.Namespace, seed: int):
    self.flags, self.seed = flags, seed
    self.folder = os.path.join(os.path.abspath(flags.output), f'seed_{seed}')
    os.makedirs(self.folder, exist_ok=True)
    self.partitioner = quickstart_lib.partitioning.Partitioner(devices=jax.devices()[:1])

  def path(self, *names: str) -> str:
    return os.path.join(self.folder, *names)

  def text(self) -> TextConfig:
    raise NotImplementedError

  def model(self) -> RetrievalLM:
    raise NotImplementedError

  def done(self, name: str, steps: int = 0) -> bool:
    return quickstart_lib._finished(self.path(name), steps)  # pylint: disable=protected-access

  def save(self, name: str, params) -> None:
    """A checkpoint of parameters alone."""
    spec = Specification(
      self.model(),
      QueryTokenizer(self.text(), self.store.reader_vocabulary, self.store.retriever_vocabulary),
    )
    os.makedirs(self.path(name), exist_ok=True)
    spec.save(self.path(name))
    checkpoints = Checkpoints(self.path(name))
    checkpoints.save(0, {'params': params}, {}, {})
    checkpoints.wait()
    checkpoints.close()

  def prepare(self) -> None:
    """A reader, and a retriever for each start."""
    if not self.done('untrained'):
      params = train_state.initialize(self.model(), {}, self.partitioner, self.seed).params
      self.save(
        'untrained',
        {
          **params,
          'reader': copying_init.copying_init(params['reader'], jax.random.key(self.seed)),
        },
      )
    self.train_reader()
    for start, steps in (('weak', self.flags.weak_steps), ('warm', self.flags.warm_steps)):
      if start not in self.flags.starts or self.done(start):
        continue
      opened = opening.open_checkpoint(self.reader(), self.partitioner)
      config = dataclasses.replace(self.warm_start, steps=steps, seed=self.seed)
      params = crop_training.warm_start(
        self.model(),
        opened.params,
        CropSampler(self.store, config),
        optimizers.adamw(
          schedules.create_learning_rate_scheduler(
            'constant * linear_warmup * cosine_decay', 1e-2, min(30, steps // 4), total_steps=steps
          ),
          weight_decay=0.0,
        ),
        config,
        partitioner=self.partitioner,
      )
      self.save(start, params)

  def train_reader(self) -> None:
    """On documentation alone."""

  def reader(self) -> str:
    return self.path('untrained')

  def index(self, checkpoint: str, name: str) -> str:
    if not os.path.exists(self.path(name, 'CURRENT')):
      embedding.embed(
        checkpoint=checkpoint,
        corpus=str(self.store.directory),
        output=self.path(name),
        progress=False,
      )
    return self.path(name)

  def run(self, name: str, start: str, loss: str | None) -> dict[str, float]:
    """One cell: trains, embeds the corpus, answers."""
    result = self.path(f'{name}.json')
    if os.path.exists(result):
      with open(result, encoding='utf-8') as file:
        return json.load(file)
    began = time.monotonic()
    if loss != 'start':
      self.train(name, self.path(start) if start else self.reader(), loss)
    metrics = self.evaluate(
      self.path(start if loss == 'start' else name), name, loss != 'closed_book'
    )
    metrics['seconds'] = round(time.monotonic() - began, 1)
    with open(result, 'w', encoding='utf-8') as file:
      json.dump(metrics, file)
    return metrics

  def train(self, name: str, initial: str, loss: str | None) -> None:
    flags = self.flags
    with quiet.withheld_stderr():
      from ralm_jax.data import pipeline
      from ralm_jax.tasks import qa
    closed = loss == 'closed_book'
    learns = loss in LOSSES
    text = self.text()
    if closed:
      text = dataclasses.replace(text, reader_format='{query}', passage_length=32, n_passages=1)
    model = dataclasses.replace(self.model(), train_retriever=learns)
    if learns:
      model = dataclasses.replace(
        model,
        gold_score=loss,
        temperature_gold=GOLD_TEMPERATURES.get(loss, flags.attention_temperature),
      )
    task = qa.jsonl_task(
      f'study_{self.seed}_{name}',
      train=self.train_questions,
      text=text,
      reader_vocabulary=self.vocabularies[0],
      retriever_vocabulary=self.vocabularies[1],
      require_answers=False,
    )
    # A closed-book reader has nothing but what it learns here.
    reader_rate = flags.reader_learning_rate or (1e-3 if closed else None)
    schedule = lambda rate: schedules.create_learning_rate_scheduler(
      'constant * linear_warmup', rate, 20, total_steps=flags.steps
    )
    retrieval_cfg = None
    if not closed:
      refreshes = learns and flags.refresh != 'never'
      # A refresh changes the index; without one all cells can share it.
      index = f'index_{name}' if refreshes else f'{os.path.basename(initial)}_index'
      retrieval_cfg = RetrievalConfig(
        corpus=str(self.store.directory),
        index=self.index(initial, index),
        refresh_index=flags.refresh if refreshes else None,
      )
    training.train(
      model=model,
      text=text,
      model_dir=self.path(name),
      total_steps=flags.steps,
      data=pipeline.DatasetConfig(task, batch_size=flags.batch_size, seed=self.seed),
      vocabularies=training.Vocabularies(*self.vocabularies),
      optimizers={
        name: optimizers.adamw(schedule(rate), weight_decay=0.0)
        for name, rate, learning in (
          ('reader', reader_rate, bool(reader_rate)),
          ('retriever', flags.retriever_learning_rate, learns),
        )
        if learning
      },
      retrieval=retrieval_cfg,
      checkpoints=CheckpointConfig(period=100_000, keep=1),
      partitioner=self.partitioner,
      start=training.StartingPoint(initial),
      recall_skip=0,
      stats_period=50,
      random_seed=self.seed,
    )
    # Evaluated as the study says, whatever the run was trained with.
    Specification(
      model, QueryTokenizer(text, self.store.reader_vocabulary, self.store.retriever_vocabulary)
    ).save(self.path(name))

  def evaluate(self, checkpoint: str, name: str, retrieves: bool) -> dict[str, float]:
    questions = reading.read_questions(self.test_questions, duplicate_ids='number')
    # Evenly drawn, the same for every cell.
    count = min(self.flags.eval_questions, len(questions))
    questions = [questions[i] for i in np.linspace(0, len(questions) - 1, count).astype(int)]
    opened = opening.open_checkpoint(checkpoint, self.partitioner)
    index = self.index(checkpoint, f'final_index_{name}') if retrieves else None
    with opening.open_evaluator(
      opened,
      IndexSource(index),
      passages=PassageOptions(n_passages=20 if retrieves else None),
      batch_size=50,
    ) as evaluator:
      means = evaluator.evaluate(opened.params, questions)
    return {k: v for k, v in means.items() if v is not None}


class DocumentationStudy(Study):
  """The quickstart's corpus, model and reader."""

  def __init__(self, flags: argparse.Namespace, seed: int):
    super().__init__(flags, seed)
    recipe = Recipe(seed=seed, n_context=flags.n_context)
    self.recipe = dataclasses.replace(
      recipe,
      phases=(recipe.phases[0], dataclasses.replace(recipe.phases[1], steps=flags.reader_steps)),
    )
    self.quickstart = Quickstart(self.path('quickstart'), self.recipe)
    self.store = self.quickstart.corpus()
    self.vocabularies = (str(self.store.reader_vocabulary.path),) * 2
    self.train_questions = self.quickstart.path('train.jsonl')
    self.test_questions = self.quickstart.path('test.jsonl')
    self.warm_start = recipe.warm_start

  def text(self) -> TextConfig:
    return self.quickstart.text(n_passages=self.flags.n_passages)

  def model(self) -> RetrievalLM:
    return self.recipe.model(self.store.reader_vocabulary.vocab_size)

  def train_reader(self) -> None:
    if os.path.exists(self.path('reader.json')):
      return
    self.quickstart.untrained(self.store)
    self.quickstart.warm_start(self.store)
    index = self.quickstart.index('warm_start', 'index_warm_start')
    self.quickstart.train(self.store, index)
    with open(self.path('reader.json'), 'w', encoding='utf-8') as file:
      json.dump({}, file)

  def reader(self) -> str:
    """The reader that copies, with an untrained retriever."""
    if not self.done('copying'):
      opened = opening.open_checkpoint(
        self.quickstart.path('reader_and_retriever'), self.partitioner
      )
      fresh = opening.open_checkpoint(self.path('untrained'), self.partitioner)
      self.save(
        'copying', {'reader': opened.params['reader'], 'retriever': fresh.params['retriever']}
      )
    return self.path('copying')


class QuestionStudy(Study):
  """A corpus and questions of the user's."""

  warm_start = WarmStartConfig(
    batch_size=256,
    query_length=18,
    passage_length=130,
    symmetric=True,
    temperature=0.1 / 256**0.5,
    query_crops=CropConfig(0.02, 0.15, 0.1, 4, 16),
    passage_crops=CropConfig(0.5, 1.0, 0.1, 16, 128),
  )

  def __init__(self, flags: argparse.Namespace, seed: int):
    super().__init__(flags, seed)
    if not (flags.train and flags.questions):
      raise SystemExit('--corpus needs --train and --questions')
    self.store = PassageStore.open(flags.corpus)
    self.vocabularies = (
      str(self.store.reader_vocabulary.path),
      str(self.store.retriever_vocabulary.path),
    )
    self.train_questions, self.test_questions = flags.train, flags.questions

  def text(self) -> TextConfig:
    return TextConfig(
      question_format='{question}',
      query_length=32,
      reader_query_length=32,
      passage_length=128,
      retriever_passage_length=256,
      target_length=16,
      n_passages=self.flags.n_passages,
    )

  def model(self) -> RetrievalLM:
    return RetrievalLM(
      reader_config=T5Config(
        vocab_size=self.store.reader_vocabulary.vocab_size,
        emb_dim=128,
        num_heads=4,
        head_dim=32,
        mlp_dim=256,
        num_encoder_layers=2,
        num_decoder_layers=1,
        logits_via_embedding=True,
      ),
      retriever_config=BertConfig(
        vocab_size=self.store.retriever_vocabulary.vocab_size,
        emb_dim=256,
        num_heads=4,
        num_layers=0,
        mlp_dim=512,
        max_positions=512,
      ),
      n_context=self.flags.n_context,
      temperature_score=0.1 / 256**0.5,
      temperature_gold=1.0,
    )


COLUMNS = ('recall@5_gold', 'recall@20_gold', 'recall@5_answer', 'recall@20_answer', 'exact_match')


def cells(flags: argparse.Namespace) -> list[tuple[str, str, str]]:
  """(name, start, what is trained) of every cell of a seed."""
  result = [('closed_book', '', 'closed_book')]
  for start in flags.starts:
    result.append((f'{start}_start', start, 'start'))
    result.append((f'{start}_fixed', start, 'fixed'))
    result += [(f'{start}_{loss}', start, loss) for loss in flags.losses]
  return result


def show(table: dict[str, dict[str, list[float]]]) -> None:
  print(f'{"":22s}' + ''.join(f'{name:>18s}' for name in COLUMNS))
  for name, row in table.items():
    line = f'{name:22s}'
    for column in COLUMNS:
      values = 100 * np.asarray(row.get(column, []))
      line += f'{values.mean():12.1f} ±{values.std():4.1f}' if len(values) else (f'{"–":>18s}')
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> None:
  flags = parse_arguments(arguments)
  logging.getLogger().setLevel(logging.WARNING)
  # The programs of all seeds are the same: compile them once.
  jax.config.update(
    'jax_compilation_cache_dir', os.path.join(os.path.abspath(flags.output), 'compilation_cache')
  )
  table: dict[str, dict[str, list[float]]] = {}
  for seed in flags.seeds:
    study = (QuestionStudy if flags.corpus else DocumentationStudy)(flags, seed)
    study.prepare()
    for name, start, loss in cells(flags):
      metrics = study.run(name, start, loss)
      row = table.setdefault(name, {})
      for column in (*COLUMNS, 'seconds'):
        if column in metrics:
          row.setdefault(column, []).append(metrics[column])
      print(
        f'seed {seed} {name}: '
        + '  '.join(f'{k} {metrics[k]:.3f}' for k in COLUMNS if k in metrics),
        flush=True,
      )
  show(table)
  reporting.write_result(
    flags.name,
    {
      **{
        k: v
        for k, v in vars(flags).items()
        if k not in ('name', 'output', 'corpus', 'train', 'questions')
      },
      'passages': len(study.store),
      'cells': table,
    },
  )


if __name__ == '__main__':
  main()
