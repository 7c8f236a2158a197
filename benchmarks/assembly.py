"""Reader inputs from stored tokens against tokenising the joined texts.

  python benchmarks/assembly.py --passages 'passages/*.jsonl' \
      --questions questions.jsonl \
      --reader_vocabulary spiece.model --retriever_vocabulary vocab.txt

Both sides make the same arrays, [batch, n_passages, length] token ids and
mask, for random passages; the arrays are compared before anything is timed.
The peer calls the `sentencepiece` library on one thread for the whole batch,
and is given the passages' texts for nothing. Time is the processor time of
this process, which other programs on the machine do not count into; the
fastest of several rounds.
"""

import argparse
import itertools
import json
import tempfile
import time

import numpy as np
import sentencepiece

from ralm_jax.data import batches
from ralm_jax.data.corpus import passage_store
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text.templates import TokenTemplate


def tokenise_joined(
  processor: sentencepiece.SentencePieceProcessor, texts: list[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
  """What Atlas does each step: texts to padded ids and mask, [N, length]."""
  tokens = np.zeros((len(texts), length), np.int32)
  mask = np.zeros((len(texts), length), bool)
  for row, ids in enumerate(processor.encode(texts, num_threads=1)):
    ids = ids[: length - 1]
    tokens[row, : len(ids)] = ids
    tokens[row, len(ids)] = processor.eos_id()
    mask[row, : len(ids) + 1] = True
  return tokens, mask


def seconds(function, arguments: list[tuple], rounds: int) -> float:
  """Processor time of calling `function` on every argument, fastest round."""
  times = []
  for _ in range(rounds):
    start = time.process_time()
    for argument in arguments:
      function(*argument)
    times.append(time.process_time() - start)
  return min(times)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--passages', nargs='+', required=True)
  parser.add_argument('--questions', required=True)
  parser.add_argument('--reader_vocabulary', required=True)
  parser.add_argument('--retriever_vocabulary', required=True)
  parser.add_argument('--max_words', type=int, default=200)
  parser.add_argument('--batch_size', type=int, default=64)
  parser.add_argument('--n_passages', type=int, default=20)
  parser.add_argument('--length', type=int, default=256)
  parser.add_argument('--n_batches', type=int, default=8)
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()

  n_examples = args.batch_size * args.n_batches
  with open(args.questions, encoding='utf-8') as file:
    questions = [json.loads(line)['question'] for line in itertools.islice(file, n_examples)]
  questions = list(itertools.islice(itertools.cycle(questions), n_examples))
  with tempfile.TemporaryDirectory() as directory:
    start = time.perf_counter()
    store = passage_store.build_corpus(
      args.passages,
      directory,
      args.reader_vocabulary,
      args.retriever_vocabulary,
      max_words=args.max_words,
    )
    build_seconds = time.perf_counter() - start

    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(store), (args.n_batches, args.batch_size, args.n_passages))
    reader_template = TokenTemplate.for_reader(store.reader_vocabulary)
    retriever_template = TokenTemplate.for_retriever(store.retriever_vocabulary)
    processor = sentencepiece.SentencePieceProcessor(model_file=args.reader_vocabulary)

    ours, retriever, peer = [], [], []
    for batch in range(args.n_batches):
      texts = questions[batch * args.batch_size : (batch + 1) * args.batch_size]
      queries = RaggedTokens.from_lists(store.reader_vocabulary.encode_batch(texts))
      ours.append((queries, rows[batch], store, reader_template, args.length))
      retriever.append((rows[batch], store, retriever_template, args.length))
      peer.append(
        (
          processor,
          [
            f'{text} title: {passage.merged_title} context: {passage.text}'
            for text, passage_rows in zip(texts, rows[batch])
            for passage in store.passages(passage_rows)
          ],
          args.length,
        )
      )
      inputs = batches.assemble_reader_inputs(*ours[-1])
      tokens, mask = tokenise_joined(*peer[-1])
      np.testing.assert_array_equal(inputs.tokens.reshape(tokens.shape), tokens)
      np.testing.assert_array_equal(inputs.mask.reshape(mask.shape), mask)

    ours_rate = n_examples / seconds(batches.assemble_reader_inputs, ours, args.rounds)
    retriever_rate = n_examples / seconds(batches.assemble_retriever_inputs, retriever, args.rounds)
    peer_rate = n_examples / seconds(tokenise_joined, peer, args.rounds)
    n_passages_stored = len(store)

  print(
    f'{n_passages_stored:,} passages stored in {build_seconds:.1f} s; equal arrays '
    f'[{args.batch_size}, {args.n_passages}, {args.length}]'
  )
  print(f'reader inputs from stored tokens  {ours_rate:10,.0f} examples/s')
  print(f'reader inputs by tokenising text  {peer_rate:10,.0f} examples/s')
  print(f'ratio                             {ours_rate / peer_rate:10.1f}')
  print(f'retriever inputs                  {retriever_rate:10,.0f} examples/s')

  from reporting import write_result  # Beside this file.

  print(
    'written to',
    write_result(
      'assembly',
      {
        'batch_size': args.batch_size,
        'n_passages': args.n_passages,
        'length': args.length,
        'corpus_passages': n_passages_stored,
        'corpus_build_seconds': build_seconds,
        'reader_examples_per_second': ours_rate,
        'tokenising_examples_per_second': peer_rate,
        'ratio': ours_rate / peer_rate,
        'retriever_examples_per_second': retriever_rate,
      },
    ),
  )


if __name__ == '__main__':
  main()
