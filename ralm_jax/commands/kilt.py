"""Predictions as a file that KILT's scorer and its hidden tests take."""

from __future__ import annotations

from collections.abc import Sequence

from ralm_jax.commands import flags
from ralm_jax.data.option_values import PAGE_FIELDS


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Writes a file of KILT's from command-line flags."""
  parser = flags.Parser(prog, __doc__)
  add = parser.add_argument
  text = 'what `ralm eval` or `ralm infer` wrote'
  add('--predictions', required=True, metavar='predictions.jsonl', help=text)
  text = "of the questions; FEVER's true and false become SUPPORTS and REFUTES again"
  add('--record_format', required=True, choices=flags.KILT_FORMATS, help=text)
  add('--output', required=True, metavar='FILE', help='the file to write')
  text = 'where a passage names its page; auto: its document, else its id up to a separator'
  add('--page_field', choices=PAGE_FIELDS, default='auto', help=text)
  text = "what ends a page's id within a passage's"
  add('--separators', default='_#-:', metavar='CHARACTERS', help=text)
  add('--with_text', action='store_true', help='write every passage with its text')
  arguments = parser.parse_args(argv)
  from ralm_jax.evaluation import kilt_predictions

  count = kilt_predictions.write(**vars(arguments))
  print(f'{arguments.output}: {count:,} predictions')
