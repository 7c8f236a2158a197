"""Training reader and retriever together: the function, and what it is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
from typing import TYPE_CHECKING

import jax

from ralm_jax.data.text_config import TextConfig
from ralm_jax.losses.option_types import Count, Number, Seed
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.retrieval.augmenter import Augmentation
from ralm_jax.runs.settings import CheckpointConfig, RetrievalConfig
from ralm_jax.runs.training_evaluation import TrainingEvaluation
from ralm_jax.runs.training_run import StartingPoint, TrainingRun, Vocabularies
from ralm_jax.training.multihost import Agreement
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.train_state import TrainState
from ralm_jax.training.train_step import StepOptions

if TYPE_CHECKING:  # TensorFlow
  from ralm_jax.data.pipeline import DatasetConfig

__all__ = [
  'CheckpointConfig',
  'RetrievalConfig',
  'StartingPoint',
  'StepOptions',
  'TrainingEvaluation',
  'Vocabularies',
  'train',
]


def train(
  *,
  model: RetrievalLM,
  text: TextConfig,
  vocabularies: Vocabularies,
  model_dir: str,
  total_steps: Count,
  data: DatasetConfig,
  optimizers: Mapping[str, Optimizer | None],
  retrieval: RetrievalConfig | None = None,
  start: StartingPoint = StartingPoint(),
  step: StepOptions = StepOptions(),
  checkpoints: CheckpointConfig = CheckpointConfig(),
  evaluation: TrainingEvaluation | None = None,
  augmentation: Augmentation | None = None,
  recall_skip: Number = 1,
  stats_period: Count = 10,
  partitioner: Partitioner | None = None,
  random_seed: Seed = 0,
) -> TrainState:
  """Trains reader and retriever together; resumes where it was stopped.

  `optimizers` are of 'reader' and 'retriever': None, or none, freezes it. The recall of a batch
  ignores `recall_skip` leading target tokens (a sentinel).

  Raises:
    ValueError, FileNotFoundError: for input that cannot work, before anything is compiled.
  """
  with Agreement().together():
    run = TrainingRun.checked(
      model=model,
      text=text,
      vocabularies=vocabularies,
      data=data,
      optimizers=optimizers,
      retrieval=retrieval,
      evaluation=evaluation,
      partitioner=partitioner,
      model_dir=model_dir,
      start=start,
      step=step,
      saving=checkpoints,
      random_seed=random_seed,
    )
  with (
    _settled(),
    run.open_index() as index,
    contextlib.closing(index.batches(augmentation, recall_skip)) as batches,
  ):
    trainer = run.trainer(index, batches)
    progress = run.resume(trainer, index) or run.begin(trainer, index)
    reporter = run.reporter(total_steps, stats_period)
    evaluate = run.evaluator(index, reporter)
    if evaluate is not None:
      evaluate.catch_up(progress.state, total_steps)
    state = trainer.train(
      progress,
      run.iterator,
      total_steps,
      reporter=reporter,
      eval_period=None if evaluate is None else evaluate.period,
      evaluate=evaluate,
    )
    index.end()
  return state


@contextlib.contextmanager
def _settled() -> Iterator[None]:
  """Ends when the devices do: an interpreter that ends before them aborts.

  Not beside other processes, which may have gone, and then a step never ends.
  """
  try:
    yield
  except BaseException:
    if jax.process_count() == 1:
      with contextlib.suppress(Exception):  # The first error is the one to tell.
        jax.block_until_ready(jax.live_arrays())
    raise
