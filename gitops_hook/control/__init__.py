"""Let commands send requests to the process that may write the journal, over a Unix socket.

`app` is the WSGI application of that process. `client` sends requests to it.
"""
