"""Experiments: a config is a Python file that binds `config`. The fields and their bounds: nanoprune/config.py."""

from nanoprune.config import Config, Study, config_from_dict, load_config, load_study, replace

__all__ = ["Config", "Study", "config_from_dict", "load_config", "load_study", "replace"]
