"""Every figure, from CSVs alone; plot.py is a command line over it."""
