# DeeBLIP, of BLIPEE's tables: DeeBERT's heads, confidence rule.
TRAINED=deebert
RULE=confidence
