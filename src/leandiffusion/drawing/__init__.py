"""Drawing one picture of options by name, whoever asks: the command line, a server, a batch."""
