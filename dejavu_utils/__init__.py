"""What more than one script of the déjà vu test must agree on. Utilities never parse arguments and never print."""
