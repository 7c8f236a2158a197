"""The steps of the quickstart, see `command`."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import time
from typing import Any

import jax
import optax

from ralm_jax.checkpoints import store as checkpoints_lib
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.questions import reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.task import PassageOptions
from ralm_jax.files import atomic_files, quiet
from ralm_jax.models import copying_init
from ralm_jax.quickstart import (
  docstring_corpus,
  docstrings,
  recipe as recipe_lib,
  showing,
  vocabulary as vocabulary_lib,
)
from ralm_jax.quickstart.reassignment import TitleReassignment
from ralm_jax.quickstart.recipe import Phase, Recipe
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import embedding, opening, training
from ralm_jax.runs.training import CheckpointConfig, RetrievalConfig
from ralm_jax.training import crop_training, optimizers, schedules, train_state
from ralm_jax.training.crop_training import CropSampler
from ralm_jax.training.partitioning import Partitioner


class Quickstart:
  """The steps; each leaves files behind and is skipped when they are whole."""

  def __init__(self, output: str, recipe: Recipe):
    self.output = os.path.abspath(output)
    self.recipe = recipe
    self.partitioner = Partitioner(devices=jax.devices()[:1])
    os.makedirs(self.output, exist_ok=True)
    self._check_recipe()

  def _check_recipe(self) -> None:
    """Refuses a folder that another recipe has begun to fill."""
    recipe = json.loads(json.dumps(dataclasses.asdict(self.recipe)))
    path = self.path('recipe.json')
    if not os.path.exists(path):
      atomic_files.write_json(path, recipe, indent=2)
    with open(path, encoding='utf-8') as file:
      if json.load(file) != recipe:
        raise ValueError(
          f'{self.output} holds a quickstart of another recipe (its '
          'recipe.json differs); choose another --output.'
        )

  def path(self, *names: str) -> str:
    return os.path.join(self.output, *names)

  def text(self, **changes: Any) -> TextConfig:
    """Formats of the quickstart: bare questions and answers."""
    recipe = self.recipe
    return dataclasses.replace(
      TextConfig(
        question_format='{question}',
        target_format='{answer}',
        query_length=32,
        reader_query_length=32,
        reader_format=recipe_lib.READER_FORMAT,
        passage_length=recipe.passage_length,
        retriever_passage_length=64,
        target_length=20,
        n_passages=recipe.n_passages,
      ),
      **changes,
    )

  def corpus(self) -> PassageStore:
    """Docstrings to passages, questions and a tokenised corpus."""
    if not os.path.exists(self.path('corpus', 'manifest.json')):
      found = docstrings.collect_docstrings()[: self.recipe.max_docstrings]
      docstring_corpus.write_corpus(self.output, found, seed=self.recipe.seed)
      vocabulary = vocabulary_lib.train_vocabulary(
        self.path('passages.jsonl'), self.path('vocabulary'), self.recipe.vocabulary_size
      )
      files = self.path('passages.jsonl'), self.path('corpus')
      passage_store.build_corpus(*files, vocabulary, vocabulary, progress=False, resume=False)
    return PassageStore.open(self.path('corpus'))

  def tokenizer(self, store: PassageStore) -> QueryTokenizer:
    return QueryTokenizer(self.text(), store.reader_vocabulary, store.retriever_vocabulary)

  def _save_params(self, name: str, spec: Any, params: Any) -> None:
    """A checkpoint of parameters alone."""
    os.makedirs(self.path(name), exist_ok=True)
    spec.save(self.path(name))
    with contextlib.closing(Checkpoints(self.path(name))) as checkpoints:
      checkpoints.save(0, {'params': params}, {}, {})
      checkpoints.wait()

  def untrained(self, store: PassageStore) -> None:
    """Random parameters, saved as a checkpoint to compare with."""
    if _finished(self.path('untrained'), 0):
      return
    spec = Specification(
      self.recipe.model(store.reader_vocabulary.vocab_size), self.tokenizer(store)
    )
    params = train_state.initialize(spec.model, {}, self.partitioner, self.recipe.seed).params
    reader = copying_init.copying_init(params['reader'], jax.random.key(self.recipe.seed))
    self._save_params('untrained', spec, {**params, 'reader': reader})

  def warm_start(self, store: PassageStore) -> None:
    """A retriever from unlabelled crops."""
    recipe = self.recipe
    if _finished(self.path('warm_start'), 0):
      return
    opened = opening.open_checkpoint(self.path('untrained'), self.partitioner)
    schedule = schedules.create_learning_rate_scheduler(
      'constant * linear_warmup * cosine_decay',
      recipe.warm_start_learning_rate,
      30,
      total_steps=recipe.warm_start.steps,
    )
    params = crop_training.warm_start(
      opened.spec.model,
      opened.params,
      CropSampler(store, recipe.warm_start),
      optimizers.adamw(schedule, weight_decay=0.0),
      recipe.warm_start,
      partitioner=self.partitioner,
    )
    self._save_params('warm_start', opened.spec, params)

  def index(self, checkpoint: str, name: str) -> str:
    """The corpus embedded with a checkpoint."""
    path = self.path(name)
    if not os.path.exists(os.path.join(path, 'CURRENT')):
      source = self.path(checkpoint)
      embedding.embed(checkpoint=source, corpus=self.path('corpus'), output=path, progress=False)
    return path

  def train(self, store: PassageStore, index: str) -> str:
    """The reader in phases, then reader and retriever together."""
    recipe, start = self.recipe, 'warm_start'
    allowed = store.rows_of([q.id for q in reading.read_questions(self.path('train.jsonl'))])
    for number, phase in enumerate(recipe.phases, 1):
      last = number == len(recipe.phases)
      name = 'reader_and_retriever' if last else f'reader_phase_{number}'
      text = self.text(
        reader_format=phase.reader_format,
        reader_query_length=phase.query_length,
        passage_length=phase.passage_length,
        n_passages=max(phase.n_passages, 1),
      )
      augmentation = TitleReassignment(
        store,
        title_rows=allowed,
        random_titles=phase.random_titles,
        max_title_length=phase.title_length,
        seed=recipe.seed,
      )
      retrieval = RetrievalConfig(corpus=self.path('corpus'), index=index)
      self._train_phase(name, phase, text, self.path(start), retrieval, augmentation)
      start = name
    # At evaluation the model reads what this recipe says, not the last phase.
    trained = Specification.load(self.path(start))
    Specification(trained.model, self.tokenizer(store)).save(self.path(start))
    return self.path(start)

  def train_closed_book(self, store: PassageStore) -> str:
    """The same reader with the same steps and examples, without passages."""
    phases = self.recipe.phases
    steps = sum(phase.steps for phase in phases)
    examples = sum(phase.steps * phase.batch_size for phase in phases)
    phase = dataclasses.replace(
      phases[-1],
      steps=steps,
      batch_size=max(1, round(examples / steps)),
      n_passages=0,
      passage_length=32,
      query_length=32,
    )
    text = self.text(reader_format='{query}', passage_length=32, n_passages=1)
    self._train_phase('closed_book', phase, text, self.path('untrained'))
    return self.path('closed_book')

  def _train_phase(
    self,
    name: str,
    phase: Phase,
    text: TextConfig,
    initial: str,
    retrieval: RetrievalConfig | None = None,
    augmentation: TitleReassignment | None = None,
  ) -> None:
    if _finished(self.path(name), phase.steps):
      return
    with quiet.withheld_stderr():
      from ralm_jax.data import pipeline
      from ralm_jax.tasks import qa

    store = PassageStore.open(self.path('corpus'))
    vocabulary = str(store.reader_vocabulary.path)
    model = self.recipe.model(store.reader_vocabulary.vocab_size)
    model = dataclasses.replace(model, train_retriever=phase.n_passages > 0)
    task = qa.jsonl_task(
      f'quickstart_{name}',
      train=self.path('train.jsonl'),
      text=text,
      reader_vocabulary=vocabulary,
      retriever_vocabulary=vocabulary,
    )
    training.train(
      model=model,
      text=text,
      model_dir=self.path(name),
      total_steps=phase.steps,
      data=pipeline.DatasetConfig(task, batch_size=phase.batch_size, seed=self.recipe.seed),
      vocabularies=training.Vocabularies(vocabulary, vocabulary),
      optimizers=self._optimizers(phase),
      retrieval=retrieval,
      checkpoints=CheckpointConfig(period=200, keep=1),
      partitioner=self.partitioner,
      start=training.StartingPoint(initial),
      augmentation=augmentation,
      recall_skip=0,
      stats_period=100,
      random_seed=self.recipe.seed,
    )

  def _optimizers(self, phase: Phase) -> dict[str, optax.GradientTransformation | None]:

    def schedule(rate: float) -> optax.Schedule:
      warmup, half = min(30, phase.steps // 4), phase.steps // 2
      rising = optax.linear_schedule(0.0, rate, warmup)
      falling = optax.cosine_decay_schedule(rate, phase.steps - half, phase.final_rate)
      parts = [rising, optax.constant_schedule(rate), falling]
      return optax.join_schedules(parts, [warmup, half])

    reader = optimizers.adamw(schedule(phase.learning_rate), b2=0.98, weight_decay=0.0)
    retriever = optimizers.adamw(schedule(self.recipe.retriever_learning_rate), weight_decay=0.0)
    return {'reader': reader, 'retriever': retriever if phase.n_passages else None}

  @contextlib.contextmanager
  def _evaluator(
    self, checkpoint: str, index: str | None, n_passages: int | None = None
  ) -> Iterator[tuple[Evaluator, Any, list[Question]]]:
    """An evaluator with the parameters and the test questions."""
    questions = reading.read_questions(self.path('test.jsonl'))
    opened = opening.open_checkpoint(checkpoint, self.partitioner)
    options: Any = {'passages': PassageOptions(n_passages=n_passages), 'batch_size': 64}
    with opening.open_evaluator(opened, IndexSource(index), **options) as evaluator:
      yield evaluator, opened.params, questions[: self.recipe.test_questions]

  def evaluate(self, checkpoint: str, index: str | None, name: str) -> dict[str, Any]:
    """Answers the test questions; writes `name/`."""
    with self._evaluator(checkpoint, index) as (evaluator, params, questions):
      return evaluator.evaluate(params, questions, output=self.path(name))

  def recall(self, checkpoint: str, index: str) -> float:
    """Recall@5 of the answer's passage over the test questions."""
    with self._evaluator(checkpoint, index, 5) as (evaluator, params, questions):
      return evaluator.retrieval_recall(params, questions, k=5)

  def run(self) -> dict[str, Any]:
    """Everything; returns what `summary.json` holds."""
    start = time.monotonic()
    say = lambda text: print(f'[{time.monotonic() - start:4.0f} s] {text}', flush=True)

    store = self.corpus()
    train = reading.read_questions(self.path('train.jsonl'))
    test = reading.read_questions(self.path('test.jsonl'))
    say(
      f'corpus: {len(store):,} docstrings, {len(train):,} training questions, '
      f'{len(test):,} about unseen objects'
    )

    self.untrained(store)
    index = self.index('untrained', 'index_untrained')
    before = self.recall(self.path('untrained'), index)
    say(f'recall@5 of the untrained retriever: {before:.1%}')

    self.warm_start(store)
    index = self.index('warm_start', 'index_warm_start')
    warm = self.recall(self.path('warm_start'), index)
    say(f'recall@5 after the warm start on crops: {warm:.1%}')

    checkpoint = self.train(store, index)
    say('reader and retriever trained')
    index = self.index('reader_and_retriever', 'index')
    after = self.recall(checkpoint, index)
    say(f'recall@5 after training: {after:.1%}')
    metrics = self.evaluate(checkpoint, index, 'evaluation')
    say(f'exact match on unseen objects: {metrics["exact_match"]:.1%}')

    closed = self.evaluate(self.train_closed_book(store), None, 'evaluation_closed_book')
    say(f'closed-book with the same steps: {closed["exact_match"]:.1%}')

    showing.show_answers(self.path('evaluation', 'predictions.jsonl'))
    edit = showing.show_edit(checkpoint, index, self.path('corpus'))
    summary = {
      'recall_at_5_before': before,
      'recall_at_5_warm_start': warm,
      'recall_at_5_after': after,
      'exact_match': metrics['exact_match'],
      'exact_match_closed_book': closed['exact_match'],
      **edit,
      'passages': len(store),
      'test_questions': metrics['count'],
      'seconds': round(time.monotonic() - start, 1),
      'checkpoint': checkpoint,
      'index': index,
      'corpus': self.path('corpus'),
    }
    atomic_files.write_json(self.path('summary.json'), summary, indent=2)
    print(
      f'\nSaved in {self.output}: corpus/, index/, reader_and_retriever/ (the checkpoint), '
      'evaluation/predictions.jsonl, summary.json\nAsk it yourself:\n'
      f'  ralm ask --checkpoint {checkpoint} --index {index} "{test[0].question}"'
    )
    return summary


def _finished(directory: str, steps: int) -> bool:
  with contextlib.suppress(FileNotFoundError):
    return checkpoints_lib.find(directory)[1] >= steps
  return False
