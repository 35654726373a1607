"""Diagnose problems of an installation, a recipe, a training run or a tokenizer, and suggest fixes."""
