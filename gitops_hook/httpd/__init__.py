"""Serve a WSGI application over HTTP/1.1."""
