# CALM by state saturation.
TRAINED=pabee_shared
RULE=saturation
