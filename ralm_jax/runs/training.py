"""Training: `python -m ralm_jax.train --gin_file=… --gin.MODEL_DIR=…`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import logging
import os
from typing import Any

import jax

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.checkpoints.store import Checkpoints
from ralm_jax.data.questions import reading
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.tokenization import QueryTokenizer
from ralm_jax.data.text_config import TextConfig
from ralm_jax.evaluation import choice_evaluator, gathering, prediction_files
from ralm_jax.evaluation.answering import AnswerOptions
from ralm_jax.evaluation.choice_evaluator import ChoiceEvaluator
from ralm_jax.evaluation.evaluator import Evaluator
from ralm_jax.evaluation.scores import by_task
from ralm_jax.models import dual_encoder
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.retrieval import connect
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.augmenter import Augmentation, RetrievalAugmenter
from ralm_jax.runs import gin_config, index, opening, settings
from ralm_jax.runs.index import RunRetrieval
from ralm_jax.training.multihost import Agreement
from ralm_jax.training.optimizers import Optimizer
from ralm_jax.training.partitioning import Partitioner
from ralm_jax.training.reporting import Reporter
from ralm_jax.training.trainer import Progress, Trainer, TrainState

CheckpointConfig = settings.CheckpointConfig
RetrievalConfig = settings.RetrievalConfig


def train(
  *,
  model: RetrievalLM,
  text: TextConfig,
  model_dir: str,
  total_steps: int,
  train_dataset_cfg: Any,
  reader_vocabulary: str,
  retriever_vocabulary: str,
  reader_optimizer: Optimizer | None,
  retriever_optimizer: Optimizer | None = None,
  retrieval_cfg: RetrievalConfig | None = None,
  checkpoint_cfg: CheckpointConfig = CheckpointConfig(),
  partitioner: Partitioner | None = None,
  initial_checkpoint_path: str | None = None,
  initial_params: Callable[[], Any] | None = None,
  num_microbatches: int = 1,
  freeze_retriever_steps: int = 0,
  global_clip_norm: float | None = None,
  retrieval_lookahead: int = 1,
  augmentation: Augmentation | None = None,
  recall_skip: int = 1,
  eval_questions: str | Sequence[str] | None = None,
  eval_record_format: str = 'qa',
  eval_on_error: str = 'raise',
  eval_metrics: str | None = None,
  eval_permutations: str = 'single',
  eval_period: int | None = None,
  eval_num_examples: int | None = None,
  eval_batch_size: int = 32,
  eval_answering: AnswerOptions = AnswerOptions(),
  stats_period: int = 10,
  random_seed: int = 0,
) -> TrainState:
  """Trains reader and retriever together; resumes where it was stopped.

  Args:
    model: reader, retriever and losses.
    text: formats and lengths.
    model_dir: the run's folder.
    total_steps: where to end, counted from the beginning of the run.
    train_dataset_cfg: a `pipeline.DatasetConfig`.
    reader_vocabulary: file.
    retriever_vocabulary: file.
    reader_optimizer: None freezes the reader.
    retriever_optimizer: None freezes the retriever.
    retrieval_cfg: None for closed-book models.
    checkpoint_cfg: when to save.
    partitioner: None shards over all devices by data.
    initial_checkpoint_path: parameters to start from.
    initial_params: or a function that loads them, e.g. of Hugging Face folders.
    num_microbatches: gradient accumulation.
    freeze_retriever_steps: the first so many steps leave the retriever as it
      is.
    global_clip_norm: clips the gradients of both modules together, in place of
      each optimiser's own clipping.
    retrieval_lookahead: 1 retrieves the next batch during a step.
    augmentation: changes what training examples show.
    recall_skip: leading target tokens (a sentinel) the batch's recall ignores.
    eval_questions: jsonl files or globs to answer during training.
    eval_record_format: their layout, see `data/questions/formats/catalogue.py`.
    eval_on_error: 'raise', or 'skip' to leave malformed ones out.
    eval_metrics: one of `task_metrics.FAMILIES`; None for that of the layout.
    eval_permutations: orders of a multiple choice's options that are averaged.
    eval_period: steps between evaluations.
    eval_num_examples: how many of them; None for all.
    eval_batch_size: questions at a time.
    eval_answering: how answers are decoded.
    stats_period: steps between reports.
    random_seed: of initialisation and dropout.

  Returns:
    The final state.

  Raises:
    ValueError, FileNotFoundError: for input that cannot work, before anything
      is compiled.
  """
  from ralm_jax.data import pipeline  # imports TensorFlow

  agreement = Agreement()
  with agreement.together():
    tokenizer = QueryTokenizer(
      text,
      vocabularies.load_vocabulary(reader_vocabulary),
      vocabularies.load_vocabulary(retriever_vocabulary),
    )
    spec = Specification(model, tokenizer)
    spec.check()
    partitioner = partitioner or Partitioner()
    optimizers = {
      name: optimizer
      for name, optimizer in (('reader', reader_optimizer), ('retriever', retriever_optimizer))
      if optimizer is not None
    }
    if 'retriever' in optimizers and not (model.learns_retriever and retrieval_cfg):
      raise ValueError(
        'A retriever optimizer is given, but the model does not train its '
        'retriever (train_retriever, gold_score, reading) or has no index.'
      )
    if model.learns_retriever and 'retriever' not in optimizers:
      model = dataclasses.replace(model, train_retriever=False)
      spec = dataclasses.replace(spec, model=model)
    if retrieval_cfg is not None:
      retrieval_cfg.check(model, text)
    if not text.closed_book and retrieval_cfg is None:
      raise ValueError(
        'The reader format shows passages; give a RetrievalConfig with an '
        "index or an address, or use reader_format = '{query}'."
      )
    questions = None
    if eval_questions:
      questions = reading.read_questions(
        eval_questions,
        duplicate_ids='number',
        record_format=eval_record_format,
        on_error=eval_on_error,
      )[:eval_num_examples]
      eval_metrics = by_task.family_of(questions, eval_metrics)
      choice_evaluator.check(eval_metrics, questions, eval_permutations, tokenizer)
    iterator = pipeline.get_dataset_iterator(
      train_dataset_cfg,
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
        'reader_query': tokenizer.reader_vocabulary.pad_id,
        'targets': tokenizer.reader_vocabulary.pad_id,
      },
    )
  checkpoints = Checkpoints(
    model_dir,
    keep=checkpoint_cfg.keep,
    keep_period=checkpoint_cfg.keep_period,
    asynchronous=checkpoint_cfg.asynchronous,
  )

  def starting_params() -> Any:
    params = None
    if initial_checkpoint_path:
      opened = opening.open_checkpoint(initial_checkpoint_path, partitioner)
      spec.check_same_vocabularies(opened.directory)
      params = opened.params
    elif initial_params is not None:
      params = initial_params()
    if params is not None and not model.tied_retriever:
      # Of one tower (a warm start), two that begin alike.
      params = {**params, 'retriever': dual_encoder.untie(params['retriever'])}
    return params

  def run(retrieval: RunRetrieval | None, state: TrainState | None) -> TrainState:
    if retrieval is None:
      evaluation_retriever = None
      iterator.use_corpus(None)
      augmenter = RetrievalAugmenter(
        model, partitioner, Assembler(tokenizer, None), None, augmentation=augmentation
      )
    else:
      evaluation_retriever = retrieval.evaluation_retriever
      iterator.use_corpus(retrieval.assembler.store)
      augmenter = RetrievalAugmenter(
        model,
        partitioner,
        retrieval.assembler,
        retrieval.retriever,
        augmentation=augmentation,
        recall_skip=recall_skip,
        n_passages=text.n_passages,
        generation_steps=(retrieval.generation_steps if model.moves_passages else None),
        before_search=retrieval.before_search,
      )
    reranks = retrieval is not None and ((retrieval_cfg.n_candidates or 0) > text.n_passages)
    trainer = Trainer(
      model,
      optimizers,
      partitioner,
      augmenter,
      checkpoints,
      num_microbatches=num_microbatches,
      freeze_retriever_steps=freeze_retriever_steps,
      global_clip_norm=global_clip_norm,
      rerank_to=text.n_passages if reranks else None,
      rerank_chunk=retrieval_cfg.rerank_chunk if reranks else None,
      index_refresh=retrieval and retrieval.index_refresh,
      retrieval_lookahead=retrieval_lookahead,
      checkpoint_period=checkpoint_cfg.period,
      on_checkpoint=retrieval and retrieval.on_checkpoint,
      metadata={'seed': random_seed, 'batch_size': train_dataset_cfg.batch_size},
    )
    generation = None
    if checkpoints.latest_step() is not None:
      with agreement.together():
        spec.check_same_vocabularies(model_dir)
    progress = trainer.resume(iterator)
    if jax.process_index() == 0:
      spec.save(model_dir)
      gin_config.save_config(model_dir)
    if progress is not None:
      saved = checkpoints.metadata(progress.step)
      generation = saved['generation']
      if retrieval is not None:
        with agreement.together():
          retrieval.check_same_index(saved.get('index'))
    else:
      state = state or trainer.initialize(random_seed, starting_params())
      progress = Progress(state)
    if retrieval is not None:
      retrieval.begin(generation, progress.state.params)
    reporter = Reporter(
      total_steps, directory=os.path.join(model_dir, 'train'), period=stats_period
    )
    evaluate = None
    if questions is not None:
      evaluator = Evaluator(
        spec,
        partitioner,
        evaluation_retriever,
        batch_size=eval_batch_size,
        rerank_to=text.n_passages if reranks else None,
        rerank_chunk=retrieval_cfg.rerank_chunk if reranks else None,
        answering=eval_answering,
        metrics=eval_metrics,
      )
      if by_task.family(eval_metrics).chooses:
        evaluator = ChoiceEvaluator(evaluator, permutations=eval_permutations)

      def evaluation_folder(step: int) -> str:
        return os.path.join(model_dir, 'inference_eval', f'step_{step}')

      def evaluate(state: TrainState) -> None:
        step = int(state.step)
        means = evaluator.evaluate(state.params, questions, output=evaluation_folder(step))
        scalars = {f'eval/{k}': v for k, v in means.items() if isinstance(v, (int, float))}
        reporter.write(step, scalars)
        logging.info(
          'evaluation at step %d: %s', step, '  '.join(f'{k} {v:.4g}' for k, v in scalars.items())
        )

    try:
      step = progress.step
      if (
        evaluate
        and eval_period
        and step
        and (step % eval_period == 0 or step == total_steps)
        and not any(
          gathering.gather(
            [os.path.exists(os.path.join(evaluation_folder(step), prediction_files.METRICS))]
          )
        )
      ):
        evaluate(progress.state)  # It was stopped between saving and this.
      state = trainer.train(
        progress,
        iterator,
        total_steps,
        reporter=reporter,
        eval_period=eval_period,
        evaluate=evaluate,
      )
    finally:
      augmenter.close()
    if retrieval is not None:
      retrieval.end()
    return state

  try:
    if text.closed_book:
      return run(None, None)
    state = None
    with agreement.together():
      if retrieval_cfg.index_is_missing:
        state = index.build_missing_index(
          retrieval_cfg,
          spec,
          optimizers,
          partitioner,
          starting_params(),
          run=model_dir,
          seed=random_seed,
        )
    with contextlib.ExitStack() as stack:
      with agreement.together():
        connected = stack.enter_context(connect.connect(**retrieval_cfg.connection(partitioner)))
        connect.check_lookahead(connected.client, retrieval_lookahead)
        retrieval = RunRetrieval(
          retrieval_cfg,
          connected,
          spec,
          partitioner,
          checkpoints,
          freeze_retriever_steps=freeze_retriever_steps,
        )
      return run(retrieval, state)
  finally:
    checkpoints.close()
