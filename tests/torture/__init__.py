"""``make torture``: the promises of docs/reliability.md, each tested under every fault that it covers.

The tests use real processes, files, sockets and signals, and only the standard library, tests/harness.py and
tests/scratch.py. `account` counts the results. `host` runs the daemon with its checkouts and verifies its state from
outside. The other modules each hold one group of tests: `kills`, `power`, `faults`, `storms`, `clients`, `pressure`
(memory and the interpreter), `consumption` (everything else that deploys, peers and users can use up). `honest` sends
valid deliveries during a test and measures the responses. `__main__` runs the tests in order and prints the table.
"""
