"""Does it help? A study of all methods with several seeds: `python examples/study --help`."""
