"""The offline default: a fictional newsroom on localhost."""
