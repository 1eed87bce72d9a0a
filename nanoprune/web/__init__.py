"""A newsroom or a folder in, articles out; knows no tokens and no torch."""
