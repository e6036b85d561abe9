"""Early exits (MuE) for the unified vision-language model OFA, driven by fairseq."""
