"""A training run, from options that have been checked to its first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

import jax

from ralm_jax.checkpoints import specification
from ralm_jax.checkpoints.specification import Specification
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text import vocabularies as vocabulary_files
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.losses.array_types import PyTree
from ralm_jax.models import dual_encoder
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.retrieval import connect
from ralm_jax.runs import gin_config, index as run_index, opening, user_modules
from ralm_jax.runs.index import NoIndex, RunIndex
from ralm_jax.runs.settings import CheckpointConfig, RetrievalConfig
from ralm_jax.runs.training_evaluation import RunEvaluator, TrainingEvaluation
from ralm_jax.training import rerank_step
from ralm_jax.training.batch_source import BatchSource
from ralm_jax.training.multihost import Agreement
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.reporting import Reporter
from ralm_jax.training.train_state import Optimizers
from ralm_jax.training.train_step import StepOptions
from ralm_jax.training.trainer import Progress, Saving, Trainer

if TYPE_CHECKING:  # TensorFlow
  from ralm_jax.data.pipeline import DatasetConfig, DatasetIterator


@dataclasses.dataclass(frozen=True)
class Vocabularies:
  """The files of both vocabularies."""

  reader: str
  retriever: str

  def tokenizer(self, text: TextConfig) -> QueryTokenizer:
    load = vocabulary_files.load_vocabulary
    return QueryTokenizer(text, load(self.reader), load(self.retriever))


@dataclasses.dataclass(frozen=True)
class StartingPoint:
  """Where the parameters come from; random where neither is given."""

  checkpoint: str | None = None  #: MODEL_DIR or MODEL_DIR/checkpoint_<step> of another run
  #: Or a function that loads them, e.g. of Hugging Face folders.
  params: Callable[[], PyTree] | None = None

  def load(self, spec: Specification, partitioner: Partitioner) -> PyTree | None:
    """The parameters; of one tower (a warm start), two that begin alike."""
    params = None
    if self.checkpoint:
      opened = opening.open_checkpoint(self.checkpoint, partitioner)
      spec.check_same_vocabularies(opened.directory)
      params = opened.params
    elif self.params is not None:
      params = self.params()
    if params is not None and not spec.model.tied_retriever:
      params = {**params, 'retriever': dual_encoder.untie(params['retriever'])}
    return params


@dataclasses.dataclass(frozen=True)
class TrainingRun:
  """What `train` was told, once nothing of it contradicts the rest."""

  spec: Specification  #: of the model as it is trained
  optimizers: Optimizers  #: of the modules that learn
  retrieval: RetrievalConfig | None  #: None for closed-book
  iterator: DatasetIterator  #: of the examples
  batch_size: int
  questions: tuple[list[Question], str] | None  #: of the evaluation, and their metrics
  evaluation: TrainingEvaluation
  model_dir: str
  start: StartingPoint
  step: StepOptions
  saving: CheckpointConfig
  partitioner: Partitioner
  random_seed: int
  agreement: Agreement = dataclasses.field(default_factory=Agreement)

  @classmethod
  def checked(
    cls,
    *,
    model: RetrievalLM,
    text: TextConfig,
    vocabularies: Vocabularies,
    data: DatasetConfig,
    optimizers: Mapping[str, Optimizer | None],
    retrieval: RetrievalConfig | None,
    evaluation: TrainingEvaluation | None,
    partitioner: Partitioner | None,
    **others,
  ) -> TrainingRun:
    """Checks whatever can be wrong before anything is compiled; ValueError, FileNotFoundError."""
    tokenizer = vocabularies.tokenizer(text)
    model = specification.with_ids_of(model, tokenizer.reader_vocabulary)
    Specification(model, tokenizer).check()
    trained = {name: found for name, found in optimizers.items() if found is not None}
    model = _check_retriever(model, text, trained, retrieval)
    evaluation = evaluation or TrainingEvaluation()
    return cls(
      spec=Specification(model, tokenizer),
      optimizers=trained,
      retrieval=None if text.closed_book else retrieval,
      questions=evaluation.read(tokenizer),
      iterator=_examples(data, tokenizer),
      batch_size=data.batch_size,
      evaluation=evaluation,
      partitioner=partitioner or Partitioner(),
      **others,
    )

  @functools.cached_property
  def checkpoints(self) -> Checkpoints:
    """Opened when first asked for; every process must ask."""
    return Checkpoints(
      self.model_dir,
      keep=self.saving.keep,
      keep_period=self.saving.keep_period,
      asynchronous=self.saving.asynchronous,
    )

  @property
  def _metadata(self) -> dict[str, Any]:
    """What a run that goes on has the same."""
    return {
      'seed': self.random_seed,
      'batch_size': self.batch_size,
      'examples': self.iterator.examples,
    }

  def _check_goes_on(self) -> None:
    """Raises ValueError for checkpoints of another run, before an index is built."""
    step = self.checkpoints.latest_step()
    if step is not None:
      with self.agreement.together():
        self.checkpoints.check_metadata(step, self._metadata)
        self.spec.check_same_vocabularies(self.model_dir)

  @contextlib.contextmanager
  def open_index(self) -> Iterator[RunIndex | NoIndex]:
    """The index, built with the starting parameters where it is missing."""
    with contextlib.ExitStack() as stack:
      stack.callback(self.checkpoints.close)
      self._check_goes_on()
      index: RunIndex | NoIndex = NoIndex(self.spec, self.partitioner)
      if self.retrieval is not None:
        built_with = None
        with self.agreement.together():
          if self.retrieval.index_is_missing:
            built_with = run_index.build_missing_index(
              self.retrieval,
              self.spec,
              self.optimizers,
              self.partitioner,
              self.start.load(self.spec, self.partitioner),
              run=self.model_dir,
              seed=self.random_seed,
            )
        with self.agreement.together():
          connected = stack.enter_context(
            connect.connect(self.retrieval.source, partitioner=self.partitioner)
          )
          connect.check_lookahead(connected.client, self.step.retrieval_lookahead)
          index = RunIndex(
            self.retrieval,
            connected,
            self.spec,
            self.partitioner,
            self.checkpoints,
            freeze_retriever_steps=self.step.freeze_retriever_steps,
            built_with=built_with,
          )
      self.iterator.use_corpus(index.assembler.store)
      yield index

  def trainer(self, index: RunIndex | NoIndex, batches: BatchSource) -> Trainer:
    rerank_fn = None
    if index.rerank_to is not None:
      rerank_fn = rerank_step.partition_rerank(
        self.spec.model, self.partitioner, index.rerank_to, chunk=index.rerank_chunk
      )
    return Trainer(
      self.spec.model,
      self.optimizers,
      self.partitioner,
      batches,
      self.step,
      saving=Saving(self.checkpoints, self.saving.period, self._metadata, index.on_checkpoint),
      rerank_fn=rerank_fn,
      index_refresh=index.index_refresh,
    )

  def resume(self, trainer: Trainer, index: RunIndex | NoIndex) -> Progress | None:
    """Where the run was stopped; None for one that begins.

    Describes the run in its folder, once it is known to be the same.
    """
    progress = trainer.resume(self.iterator)
    if progress is not None:
      gin_config.tell_changes(self.model_dir)
    if jax.process_index() == 0:
      self.spec.save(self.model_dir)
      gin_config.save_config(self.model_dir)
    if progress is not None:
      saved = self.checkpoints.metadata(progress.step)
      with self.agreement.together():
        index.check_same_index(saved.get('index'))
      index.begin(saved['generation'], progress.state.params)
    return progress

  def begin(self, trainer: Trainer, index: RunIndex | NoIndex) -> Progress:
    """Step 0, with the parameters that a missing index was built with."""
    state = index.built_with
    if state is None:
      state = trainer.initialize(self.random_seed, self.start.load(self.spec, self.partitioner))
    index.begin(None, state.params)
    return Progress(state)

  def reporter(self, total_steps: int, period: int) -> Reporter:
    return Reporter(total_steps, directory=os.path.join(self.model_dir, 'train'), period=period)

  def evaluator(self, index: RunIndex | NoIndex, reporter: Reporter) -> RunEvaluator | None:
    """Of the evaluation's questions; None where there are none."""
    if self.questions is None:
      return None
    return RunEvaluator(
      self.evaluation, *self.questions, self.spec, self.partitioner, index, self.model_dir, reporter
    )


def _check_retriever(
  model: RetrievalLM, text: TextConfig, optimizers: Optimizers, retrieval: RetrievalConfig | None
) -> RetrievalLM:
  """The model, its retriever fixed where no optimiser trains it."""
  if 'retriever' in optimizers and not (model.learns_retriever and retrieval):
    raise ValueError(
      'A retriever optimizer is given, but the model does not train its '
      'retriever (train_retriever, gold_score, reading) or has no index.'
    )
  if model.learns_retriever and 'retriever' not in optimizers:
    model = dataclasses.replace(model, train_retriever=False)
  if retrieval is not None:
    retrieval.check(model, text)
  if not text.closed_book and retrieval is None:
    raise ValueError(
      'The reader format shows passages; give a RetrievalConfig with an '
      "index or an address, or use reader_format = '{query}'."
    )
  return model


def _examples(data: DatasetConfig, tokenizer: QueryTokenizer) -> DatasetIterator:
  """This process's share of the task."""
  from ralm_jax.data import pipeline  # imports TensorFlow

  if data.module:
    user_modules.load(data.module)
  text = tokenizer.text
  reader_pad_id = tokenizer.reader_vocabulary.pad_id
  return pipeline.get_dataset_iterator(
    data,
    {
      'query': text.query_length,
      'reader_query': text.reader_query_length,
      'targets': text.target_length,
    },
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    # A task of the user's own may know nothing of the model's padding.
    pad_ids={
      'query': tokenizer.retriever_vocabulary.pad_id,
      'reader_query': reader_pad_id,
      'targets': reader_pad_id,
    },
  )
