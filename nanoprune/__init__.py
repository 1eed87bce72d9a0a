"""What the nine scripts share. The first line of each package's `__init__.py` says what it holds."""
