"""Requests from commands to the process that writes the journal, over a Unix socket."""
