"""Predictions as a file that KILT's scorer and its hidden tests take."""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.commands import flags

PAGE_FIELDS = ('auto', 'document', 'id', 'title')


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Writes a file of KILT's from command-line flags."""
  parser = flags.Parser(prog, __doc__)
  add = parser.add_argument
  add(
    '--predictions',
    required=True,
    metavar='predictions.jsonl',
    help='what `ralm eval` or `ralm infer` wrote',
  )
  add(
    '--record_format',
    required=True,
    choices=flags.KILT_FORMATS,
    help="of the questions; FEVER's true and false become SUPPORTS and REFUTES again",
  )
  add('--output', required=True, metavar='FILE', help='the file to write')
  add(
    '--page_field',
    choices=PAGE_FIELDS,
    default='auto',
    help='where a passage names its page; auto: its document, else its id up to a separator',
  )
  add(
    '--separators',
    default='_#-:',
    metavar='CHARACTERS',
    help="what ends a page's id within a passage's",
  )
  add('--with_text', action='store_true', help='write every passage with its text')
  arguments = parser.parse_args(argv)
  from ralm_jax.evaluation import kilt_predictions

  count = kilt_predictions.write(**vars(arguments))
  print(f'{arguments.output}: {count:,} predictions')
