"""``make torture``: the promises of docs/reliability.md, each tried under every fault that it is to hold under.

Real processes, files, sockets and signals; the standard library and what is in tests/harness.py and tests/scratch.py.
`account` counts, `host` is the daemon with its checkouts and knows what is true, and each other module is a family of
ordeals: `kills`, `power`, `faults`, `storms`, `clients`. `__main__` puts them in order and prints the table.
"""
