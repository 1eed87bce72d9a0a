"""Experiments: Python files that bind `config`. Fields and their bounds stand in nanoprune/config.py."""

from nanoprune.config import Config, Study, config_from_dict, load_config, load_study, replace

__all__ = ["Config", "Study", "config_from_dict", "load_config", "load_study", "replace"]
