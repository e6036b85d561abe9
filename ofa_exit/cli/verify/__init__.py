"""Compare this package's model with the official one, number by number.

A fixture is a pair of NAME.json (arch, sizes, flags, state-dict shapes, hypotheses) and NAME.npz
(arrays that the official model produced). Weights and inputs are not stored: each is drawn from
numpy's frozen legacy generator, seeded by a checksum of its name.
"""

from collections.abc import Sequence
from pathlib import Path

from ofa_exit.cli.parsing import new_parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser("verify", __doc__)
    parser.add_argument("fixtures", nargs="+", type=Path, metavar="FIXTURE.json")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest deviation allowed (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    missing = [str(path) for path in args.fixtures if not path.is_file()]
    if missing:
        parser.error(f"no such fixture: {', '.join(missing)}")
    from ofa_exit.cli.verify.comparison import verify  # slow, so after the parse

    results = [verify(path, args.tolerance) for path in args.fixtures]
    print("all within tolerance" if all(results) else "FAILED: see above")
    return 0 if all(results) else 1
