"""The command `capflow`: a module per subcommand, which parses, calls and prints."""
