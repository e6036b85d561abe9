"""Caption and entailment quality, depth metrics, reports and plots."""
