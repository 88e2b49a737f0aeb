"""Pure functions and streaming accumulators; nothing here knows of models, files or users."""
