"""The decoder's parts: they take a model and never import one."""
