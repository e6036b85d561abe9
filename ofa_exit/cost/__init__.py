"""What training and answering cost before they are run: ``python -m ofa_exit.cost``."""
