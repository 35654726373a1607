"""What may be wrong with an installation, a recipe, a training run or a tokenizer, and how to mend it."""
