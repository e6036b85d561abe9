"""What training and answering cost before they are run: ``ofa-exit cost``."""
