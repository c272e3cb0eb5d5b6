"""The command line: a parser, one module of commands per topic, and the tables that they print."""
