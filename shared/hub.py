"""Names of files on the Hugging Face hub."""

HUB = "hf://datasets/"
"""How a file's name begins: ``hf://datasets/<owner>/<name>/<file>``."""
