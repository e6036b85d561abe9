# LeeBERT (Zhu 2021, a reconstruction): linear heads that learn from each other by learned weights.
MODEL=(--exit-head linear --exit-layers all)
LOSS=(--criterion leebert_loss --learned-weights cross)
RULE=confidence
