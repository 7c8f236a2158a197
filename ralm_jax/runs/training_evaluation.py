"""Questions that are answered while a run trains."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import logging
import os

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.questions import reading
from ralm_jax.data.questions.reading import Question
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.evaluation import choice_evaluator, gathering, prediction_files, summary
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.choice_evaluator import ChoiceEvaluator
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.kilt_predictions import PageOptions
from ralm_jax.evaluation.scores import by_task
from ralm_jax.evaluation.task import ScoringOptions
from ralm_jax.losses import option_types
from ralm_jax.losses.option_types import Count
from ralm_jax.runs.index import NoIndex, RunIndex
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.reporting import Reporter
from ralm_jax.training.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainingEvaluation(PageOptions):
  """What to answer during training."""

  questions: str | Sequence[str] | None = None  #: jsonl files or globs; None answers none
  period: Count | None = None  #: steps between evaluations; None for none
  record_format: str = 'qa'  #: of the files, see `data/questions/formats/catalogue.py`
  on_error: str = 'raise'  #: or 'skip' to leave malformed records out
  metrics: str | None = None  #: one of METRICS_FAMILIES; None for that of the format
  permutations: str = 'single'  #: orders of a multiple choice's options that are averaged
  num_examples: Count | None = None  #: how many of the questions; None for all
  batch_size: Count = 32  #: questions at a time
  answering: AnswerOptions = AnswerOptions()  #: how answers are decoded

  def __post_init__(self):
    option_types.check_fields(self)

  def read(self, tokenizer: QueryTokenizer) -> tuple[list[Question], str] | None:
    """The questions and the name of their metrics; None without. ValueError for any at fault."""
    if not self.questions:
      return None
    questions = reading.read_questions(
      self.questions,
      duplicate_ids='number',
      record_format=self.record_format,
      on_error=self.on_error,
    )[: self.num_examples]
    metrics = by_task.family_of(questions, self.metrics)
    choice_evaluator.check(metrics, questions, self.permutations, tokenizer)
    return questions, metrics


class RunEvaluator:
  """Answers a run's questions into `MODEL_DIR/inference_eval/step_<step>`."""

  def __init__(
    self,
    options: TrainingEvaluation,
    questions: list[Question],
    metrics: str,
    spec: Specification,
    partitioner: Partitioner,
    index: RunIndex | NoIndex,
    model_dir: str,
    reporter: Reporter,
  ):
    evaluator = Evaluator(
      spec,
      partitioner,
      index.evaluation_retriever,
      batch_size=options.batch_size,
      passages=index.passages,
      answering=options.answering,
      scoring=ScoringOptions(
        metrics=metrics, page_field=options.page_field, page_separators=options.page_separators
      ),
    )
    self._evaluator: Evaluator | ChoiceEvaluator = evaluator
    if by_task.family(metrics).chooses:
      self._evaluator = ChoiceEvaluator(evaluator, permutations=options.permutations)
    self._questions = questions
    self._model_dir = model_dir
    self._reporter = reporter
    self.period = options.period

  def _folder(self, step: int) -> str:
    return os.path.join(self._model_dir, 'inference_eval', f'step_{step}')

  def __call__(self, state: TrainState) -> None:
    """Answers with the parameters of now; every process calls it."""
    step = int(state.step)
    means = self._evaluator.evaluate(state.params, self._questions, output=self._folder(step))
    scalars = {f'eval/{k}': v for k, v in means.items() if isinstance(v, (int, float))}
    self._reporter.write(step, scalars)
    shown = [f'{name} {value:.4g}{over}' for name, value, over in summary.numbers(means)]
    logging.info('evaluation at step %d: %s  count %d', step, '  '.join(shown), means['count'])

  def catch_up(self, state: TrainState, total_steps: int) -> None:
    """Does what a run missed that was stopped between saving and evaluating."""
    step = int(state.step)
    if not self.period or not step or (step % self.period and step != total_steps):
      return
    metrics = os.path.join(self._folder(step), prediction_files.METRICS)
    if not any(gathering.gather([os.path.exists(metrics)])):
      self(state)
