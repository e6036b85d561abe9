# LeeBERT's training, exits by patience.
TRAINED=leebert
RULE=patience
