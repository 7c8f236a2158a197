"""Report: metrics of finished runs and evaluations, mean ± deviation over seeds.

Each DIR is the OUTPUT of an evaluation, that of evaluation jobs, a run (its last
evaluation during training counts) or a folder of runs seed_0, seed_1, ....
What differs only in the seed makes one row.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json

from ralm_jax.commands import flags


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Prints a table of what the folders hold."""
  parser = flags.Parser(prog, __doc__)
  add = parser.add_argument
  add('directories', nargs='+', metavar='DIR', help='folders of results')
  add('--metrics', nargs='+', metavar='NAME', help='which ones (default: all)')
  text = 'take all results for seeds of one thing and call it so (default: by their folders)'
  add('--together', metavar='NAME', help=text)
  add('--json', action='store_true', help='JSON in place of a table')
  arguments = parser.parse_args(argv)
  from ralm_jax.files import json_records
  from ralm_jax.jobs import report

  results = [result for directory in arguments.directories for result in report.collect(directory)]
  if arguments.together:
    results = [dataclasses.replace(result, group=arguments.together) for result in results]
  if arguments.json:
    print(json.dumps(json_records.finite(report.as_json(results)), indent=2))
  else:
    print(report.render(results, arguments.metrics), end='')
