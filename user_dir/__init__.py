"""What fairseq's ``--user-dir`` imports: registers the models, tasks, criterions and scorers."""

import ofa_exit.plugin  # noqa: F401
