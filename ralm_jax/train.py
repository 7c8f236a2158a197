"""Training: `python -m ralm_jax.train --gin_file=… --gin.MODEL_DIR=…`."""
from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import logging
import os
import sys
from typing import Any

import jax

from ralm_jax import gin_utils
from ralm_jax import launch
from ralm_jax import runs
from ralm_jax import specification
from ralm_jax.data import corpus as corpus_lib
from ralm_jax.data import questions as questions_lib
from ralm_jax.data import text_config
from ralm_jax.data import tokenization
from ralm_jax.data import vocabularies
from ralm_jax.evaluation import evaluator as evaluator_lib
from ralm_jax.models import retrieval_lm
from ralm_jax.retrieval import assembler as assembler_lib
from ralm_jax.retrieval import augmenter as augmenter_lib
from ralm_jax.retrieval import connection as connection_lib
from ralm_jax.retrieval import embedding
from ralm_jax.retrieval import retriever as retriever_lib
from ralm_jax.training import checkpoints as checkpoints_lib
from ralm_jax.training import multihost
from ralm_jax.training import optimizers as optimizers_lib
from ralm_jax.training import partitioning
from ralm_jax.training import pinning
from ralm_jax.training import reporting
from ralm_jax.training import train_state
from ralm_jax.training import trainer as trainer_lib
from retrieval_service import options as options_lib


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save and what to keep.

  Attributes:
    period: steps between checkpoints.
    keep: newest ones to keep; None keeps all.
    keep_period: also keep every multiple of it.
    asynchronous: write while training goes on.
  """

  period: int = 1000
  keep: int | None = 3
  keep_period: int | None = None
  asynchronous: bool = True


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
  """Where passages come from.

  Attributes:
    corpus: CORPUS folder; None takes the one the index names.
    index: INDEX folder; built with the starting parameters if it is empty.
    address: 'host:port' of a running retrieval process instead.
    options: how a missing index is built.
    retry_for_s: how long a search waits for a dead process.
    embed_batch_size: passages at a time when building.
  """

  corpus: str | None = None
  index: str | None = None
  address: str | None = None
  options: options_lib.IndexOptions = options_lib.IndexOptions()
  retry_for_s: float = 300.0
  embed_batch_size: int = 256


def train(
    *,
    model: retrieval_lm.RetrievalLM,
    text: text_config.TextConfig,
    model_dir: str,
    total_steps: int,
    train_dataset_cfg: Any,
    reader_vocabulary: str,
    retriever_vocabulary: str,
    reader_optimizer: optimizers_lib.Optimizer | None,
    retriever_optimizer: optimizers_lib.Optimizer | None = None,
    retrieval_cfg: RetrievalConfig | None = None,
    checkpoint_cfg: CheckpointConfig = CheckpointConfig(),
    partitioner: partitioning.Partitioner | None = None,
    initial_checkpoint_path: str | None = None,
    initial_params: Callable[[], Any] | None = None,
    num_microbatches: int = 1,
    retrieval_lookahead: int = 1,
    augmentation: augmenter_lib.Augmentation | None = None,
    recall_skip: int = 1,
    eval_questions: str | Sequence[str] | None = None,
    eval_period: int | None = None,
    eval_num_examples: int | None = None,
    eval_batch_size: int = 32,
    stats_period: int = 10,
    random_seed: int = 0,
) -> trainer_lib.TrainState:
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
    retrieval_lookahead: 1 retrieves the next batch during a step.
    augmentation: changes what training examples show.
    recall_skip: leading target tokens (a sentinel) the batch's recall ignores.
    eval_questions: jsonl files or globs to answer during training.
    eval_period: steps between evaluations.
    eval_num_examples: how many of them; None for all.
    eval_batch_size: questions at a time.
    stats_period: steps between reports.
    random_seed: of initialisation and dropout.

  Returns:
    The final state.

  Raises:
    ValueError, FileNotFoundError: for input that cannot work, before anything
      is compiled.
  """
  from ralm_jax.data import pipeline  # imports TensorFlow

  agreement = multihost.Agreement()
  with agreement.together():
    tokenizer = tokenization.QueryTokenizer(
        text,
        vocabularies.load_vocabulary(reader_vocabulary),
        vocabularies.load_vocabulary(retriever_vocabulary),
    )
    spec = specification.Specification(model, tokenizer)
    spec.check()
    partitioner = partitioner or partitioning.Partitioner()
    optimizers = {
        name: optimizer
        for name, optimizer in (
            ('reader', reader_optimizer), ('retriever', retriever_optimizer)
        )
        if optimizer is not None
    }
    if 'retriever' in optimizers and not (model.distils and retrieval_cfg):
      raise ValueError(
          'A retriever optimizer is given, but the model does not train its '
          'retriever (train_retriever, gold_score) or has no index.'
      )
    if model.distils and 'retriever' not in optimizers:
      model = dataclasses.replace(model, train_retriever=False)
    if not text.closed_book and retrieval_cfg is None:
      raise ValueError(
          'The reader format shows passages; give a RetrievalConfig with an '
          "index or an address, or use reader_format = '{query}'."
      )
    questions = None
    if eval_questions:
      questions = questions_lib.read_questions(
          eval_questions, duplicate_ids='number'
      )[:eval_num_examples]
    iterator = pipeline.get_dataset_iterator(
        train_dataset_cfg,
        {
            'query': text.query_length,
            'reader_query': text.reader_query_length,
            'targets': text.target_length,
        },
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
  checkpoints = checkpoints_lib.Checkpoints(
      model_dir,
      keep=checkpoint_cfg.keep,
      keep_period=checkpoint_cfg.keep_period,
      asynchronous=checkpoint_cfg.asynchronous,
  )

  def starting_params() -> Any:
    if initial_checkpoint_path:
      opened = runs.open_checkpoint(initial_checkpoint_path, partitioner)
      spec.check_same_vocabularies(opened.directory)
      return opened.params
    return initial_params() if initial_params is not None else None

  def run(
      retriever: retriever_lib.PassageRetriever | None,
      store: corpus_lib.PassageStore | None,
      state: trainer_lib.TrainState | None,
  ) -> trainer_lib.TrainState:
    assembler = assembler_lib.Assembler(tokenizer, store)
    augmenter = augmenter_lib.RetrievalAugmenter(
        model, partitioner, assembler, retriever,
        augmentation=augmentation, recall_skip=recall_skip,
    )
    trainer = trainer_lib.Trainer(
        model, optimizers, partitioner, augmenter, checkpoints,
        num_microbatches=num_microbatches,
        retrieval_lookahead=retrieval_lookahead,
        checkpoint_period=checkpoint_cfg.period,
        on_checkpoint=pinning.pinner(checkpoints, retriever, model_dir),
        metadata={'seed': random_seed, 'batch_size': train_dataset_cfg.batch_size},
    )
    generation = None
    if checkpoints.latest_step() is not None:
      with agreement.together():
        spec.check_same_vocabularies(model_dir)
    progress = trainer.resume(iterator)
    if jax.process_index() == 0:
      spec.save(model_dir)
      gin_utils.save_config(model_dir)
    if progress is not None:
      generation = checkpoints.metadata(progress.step)['generation']
    else:
      state = state or trainer.initialize(random_seed, starting_params())
      progress = trainer_lib.Progress(state)
    if retriever is not None:
      with agreement.together():
        pinning.stay_with_generation(retriever, generation, model_dir)
    reporter = reporting.Reporter(
        total_steps, directory=os.path.join(model_dir, 'train'),
        period=stats_period,
    )
    evaluate = None
    if questions is not None:
      evaluator = evaluator_lib.Evaluator(
          spec, partitioner, retriever, batch_size=eval_batch_size
      )

      def evaluate(state: trainer_lib.TrainState) -> None:
        step = int(state.step)
        means = evaluator.evaluate(
            state.params, questions,
            output=os.path.join(model_dir, 'inference_eval', f'step_{step}'),
        )
        scalars = {f'eval/{k}': v for k, v in means.items() if v is not None}
        reporter.write(step, scalars)
        logging.info('evaluation at step %d: %s', step, '  '.join(
            f'{k} {v:.4g}' for k, v in scalars.items()))

    try:
      return trainer.train(
          progress, iterator, total_steps,
          reporter=reporter, eval_period=eval_period, evaluate=evaluate,
      )
    finally:
      augmenter.close()

  try:
    if text.closed_book:
      return run(None, None, None)
    with contextlib.ExitStack() as stack:
      with agreement.together():
        state = None
        if retrieval_cfg.index and not os.path.exists(
            os.path.join(retrieval_cfg.index, 'CURRENT')
        ):
          state = _build_missing_index(
              retrieval_cfg, model, optimizers, partitioner, tokenizer,
              starting_params(), random_seed,
          )
        connected = stack.enter_context(connection_lib.connect(
            index=retrieval_cfg.index,
            address=retrieval_cfg.address,
            corpus=retrieval_cfg.corpus,
            retry_for_s=retrieval_cfg.retry_for_s,
        ))
        retriever = retriever_lib.PassageRetriever(
            connected.client, connected.store, text.n_passages
        )
        runs.check_dimension(spec, retriever.embedding_dim)
      return run(retriever, connected.store, state)
  finally:
    checkpoints.close()


def _build_missing_index(
    retrieval_cfg: RetrievalConfig,
    model: retrieval_lm.RetrievalLM,
    optimizers: train_state.Optimizers,
    partitioner: partitioning.Partitioner,
    tokenizer: tokenization.QueryTokenizer,
    params: Any,
    seed: int,
) -> trainer_lib.TrainState:
  """Embeds the corpus with the parameters the run starts from."""
  if retrieval_cfg.corpus is None:
    raise ValueError(
        f'{retrieval_cfg.index} holds no index yet; bind '
        'RetrievalConfig.corpus (gin: CORPUS) to build one.'
    )
  if jax.process_count() > 1:
    raise ValueError(
        f'{retrieval_cfg.index} holds no index yet; on several processes build '
        'it first with `ralm embed`.'
    )
  store = corpus_lib.PassageStore.open(retrieval_cfg.corpus)
  state = train_state.initialize(model, optimizers, partitioner, seed, params)
  embedder = embedding.PassageEmbedder(
      model, partitioner, assembler_lib.Assembler(tokenizer, store),
      batch_size=retrieval_cfg.embed_batch_size,
  )
  logging.info('Building %s of %d passages.', retrieval_cfg.index, len(store))
  embedding.build_generation(
      embedder, state.params, store, retrieval_cfg.index,
      retrieval_cfg.options, checkpoint='the start of training',
  )
  return state


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Parses flags and gin, then trains."""
  launch.run_from_gin(train, argv, prog=prog, description=__doc__)


if __name__ == '__main__':
  from ralm_jax import cli

  sys.exit(cli.main(['train', *sys.argv[1:]]))
