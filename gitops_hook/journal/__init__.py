"""Store deliveries and runs in SQLite.

`reader` reads the journal, with or without a daemon. `writer` writes it: only the daemon. `database` opens, migrates
and replaces the file. `schema` holds the tables. No other package contains SQL.
"""
