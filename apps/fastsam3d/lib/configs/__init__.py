"""One file a model: its stem is the model's name, its TaskConfig says what the model offers."""
