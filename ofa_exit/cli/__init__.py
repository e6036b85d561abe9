"""The verbs of ``ofa-exit``, one file each; ``main`` finds the one that is called."""
