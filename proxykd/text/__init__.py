"""From text to token ids: sources and layouts of records, chat templates, control tokens, tokenizers.

What a model sees is decided here and nowhere else. May import runs and what that may.
"""
