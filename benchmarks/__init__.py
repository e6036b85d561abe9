"""How fast is it: the runtime beside plain OFA, and beside the arithmetic that has to be done."""
