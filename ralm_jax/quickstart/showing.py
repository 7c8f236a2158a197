"""What the quickstart shows of a trained model: answers, and one that an edit changes."""

from __future__ import annotations

import json

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.retrieval.index_source import IndexSource
from ralm_jax.runs import asking, live_edits

# Not in any documentation: only the index can know it.
NEW_PASSAGE = Passage(
  'added-moonphase',
  'calendar.moonphase',
  '',
  'Return the phase of the moon on a given day as seen from a city. The '
  'phase is a number from zero, the new moon, to one, the full moon.',
)
NEW_QUESTION = 'Return the phase of the moon on a given day as seen from a city.'


def show_answers(predictions: str) -> None:
  """Prints three answered questions of a predictions.jsonl, with passages."""
  with open(predictions, encoding='utf-8') as file:
    records = [json.loads(line) for line in file]
  print('\nThree questions about objects never seen in training:')
  for record in records[:: max(1, len(records) // 3)][:3]:
    correct = record['metrics']['exact_match']
    right = 'right' if correct else f'wrong, it is {record["answers"][0]}'
    print(f'\n  {record["query"]}\n  answer: {record["prediction"]}  ({right})')
    for passage in record['passages'][:3]:
      print(f'    {passage["probability"]:.2f}  {passage["title"]}: {passage["text"][:60]}…')


def show_edit(checkpoint: str, index: str, corpus: str) -> dict[str, str | None]:
  """A passage added to the index changes an answer without training."""

  def answer() -> str | None:
    return asking.ask(NEW_QUESTION, checkpoint=checkpoint, source=IndexSource(index)).prediction

  known = PassageStore.open(corpus).rows_of([NEW_PASSAGE.id], unknown=-1)[0] >= 0
  before = None if known else answer()
  live_edits.put([NEW_PASSAGE], checkpoint=checkpoint, index=index)
  after = answer()
  print(
    '\nOne passage added to the index, nothing trained:\n'
    f'  ralm add --checkpoint {checkpoint} --index {index} '
    f'--title {NEW_PASSAGE.title} \\\n    --text "{NEW_PASSAGE.text}"\n'
    f'  {NEW_QUESTION}\n  answer before: {before}\n  answer after:  {after}'
  )
  return {'answer_before_edit': before, 'answer_after_edit': after}
