"""The tables of the journal, as steps from each version to the next.

To change a table, append a step. Never edit a released step: existing journals have already applied it.
"""

from __future__ import annotations

#: The step at index N leads from version N to version N + 1. The number of steps is the current version.
STEPS = (
    """
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused, because the name of the log contains it
        repository TEXT NOT NULL COLLATE NOCASE,
        trigger TEXT NOT NULL,
        started REAL NOT NULL,
        ended REAL,
        outcome TEXT,
        exit INTEGER,
        before TEXT,
        after TEXT,
        message TEXT
    );
    CREATE INDEX runs_by_repository ON runs (repository, id);
    CREATE INDEX runs_in_hand ON runs (id) WHERE outcome IS NULL;
    CREATE TABLE deliveries (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        guid TEXT NOT NULL,
        event TEXT NOT NULL,
        received REAL NOT NULL,
        repository TEXT NOT NULL COLLATE NOCASE,
        ref TEXT NOT NULL,
        before TEXT NOT NULL,
        after TEXT NOT NULL,
        pusher TEXT NOT NULL,
        run INTEGER REFERENCES runs,
        owed INTEGER NOT NULL DEFAULT 1
    );
    CREATE INDEX deliveries_owed ON deliveries (repository) WHERE owed;
    CREATE INDEX deliveries_by_guid ON deliveries (guid);
    CREATE INDEX deliveries_by_run ON deliveries (run) WHERE run IS NOT NULL;
    """,
    """
    ALTER TABLE runs ADD COLUMN fetched REAL;
    ALTER TABLE runs ADD COLUMN deployed REAL;
    ALTER TABLE runs ADD COLUMN healthy REAL;
    ALTER TABLE runs ADD COLUMN brought INTEGER;
    CREATE TABLE commits (  -- the commits of a run, newest first; position 0 is the checkout's commit after it
        run INTEGER NOT NULL REFERENCES runs,
        position INTEGER NOT NULL,
        id TEXT NOT NULL,
        author TEXT NOT NULL,
        subject TEXT NOT NULL,
        time REAL NOT NULL,
        PRIMARY KEY (run, position)
    ) WITHOUT ROWID;
    CREATE INDEX commits_by_id ON commits (id);
    CREATE TRIGGER commits_go_with_their_run AFTER DELETE ON runs BEGIN DELETE FROM commits WHERE run = old.id; END;
    -- Covering indexes for the overview, which reads them without the rows.
    DROP INDEX runs_by_repository;
    CREATE INDEX runs_by_repository ON runs (repository, id, outcome, started, ended);
    CREATE INDEX runs_in_sync ON runs (repository, ended) WHERE outcome IN ('updated', 'unchanged', 'cloned');
    CREATE INDEX runs_with_commit ON runs (repository, id, after) WHERE after > '';
    """,
    """
    CREATE TABLE told (  -- the last notice about each repository that fails
        repository TEXT PRIMARY KEY COLLATE NOCASE,
        outcome TEXT NOT NULL,
        since REAL NOT NULL,
        at REAL NOT NULL
    );
    """,
    """
    CREATE TABLE pings (
        hook INTEGER PRIMARY KEY,
        target TEXT NOT NULL COLLATE NOCASE,
        url TEXT NOT NULL,
        guid TEXT NOT NULL,
        received REAL NOT NULL,
        signed TEXT NOT NULL
    );
    CREATE TABLE reports (
        repository TEXT NOT NULL COLLATE NOCASE,
        commit_id TEXT NOT NULL,
        run INTEGER NOT NULL,
        state TEXT NOT NULL,
        description TEXT NOT NULL,
        changed REAL NOT NULL,
        version INTEGER NOT NULL DEFAULT 1,
        due REAL,  -- the time to send it; NULL after it was sent
        tries INTEGER NOT NULL DEFAULT 0,
        deployment INTEGER NOT NULL DEFAULT 0,  -- the id of the deployment at the forge; 0 without one
        PRIMARY KEY (repository, commit_id)
    );
    CREATE INDEX reports_due ON reports (due) WHERE due IS NOT NULL;
    """,
    # Version 0.1 stored the cause of a run only as a sentence in `message`. The updates match these sentences.
    """
    ALTER TABLE told RENAME TO notices;
    ALTER TABLE reports RENAME TO commit_statuses;
    DROP INDEX reports_due;
    CREATE INDEX commit_statuses_due ON commit_statuses (due) WHERE due IS NOT NULL;
    DROP INDEX deliveries_owed;
    ALTER TABLE deliveries RENAME COLUMN owed TO pending;
    CREATE INDEX deliveries_pending ON deliveries (repository) WHERE pending;
    DROP INDEX runs_in_hand;
    CREATE INDEX runs_running ON runs (id) WHERE outcome IS NULL;
    ALTER TABLE deliveries ADD COLUMN force INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE runs ADD COLUMN cause TEXT;
    ALTER TABLE runs ADD COLUMN fix TEXT;
    UPDATE runs SET cause = 'shutdown'
        WHERE message = 'The daemon''s shutdown ended this run; it is done again at the next start.';
    UPDATE runs SET cause = 'killed' WHERE message IN (
        'A signal ended the command that did this run; the daemon tries it again in a minute or two.',
        'The process that did this run died with it in hand; what it owed is done again.'
    );
    UPDATE runs SET cause = 'limit' WHERE outcome = 'timed-out';
    DELETE FROM pings;  -- a payload chose their URLs; `register` stores the webhooks again with the operator's URL
    CREATE TABLE probe (id INTEGER PRIMARY KEY, time REAL NOT NULL);  -- one row, which the health check writes
    """,
    """
    CREATE TABLE fleet_outbox (  -- pushes that this host accepted and etcd does not have yet
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        guid TEXT NOT NULL,
        received REAL NOT NULL,
        repository TEXT NOT NULL COLLATE NOCASE,
        ref TEXT NOT NULL,
        before TEXT NOT NULL,
        after TEXT NOT NULL,
        pusher TEXT NOT NULL,
        default_branch TEXT NOT NULL
    );
    CREATE TABLE fleet_cursor (  -- one row: the etcd revision up to which this host has read the pushes
        life TEXT NOT NULL,
        revision INTEGER NOT NULL
    );
    CREATE TABLE fleet_rollouts (  -- checkouts that a roll-out holds on this host
        checkout TEXT PRIMARY KEY COLLATE NOCASE,
        plan BLOB NOT NULL,
        commit_id TEXT NOT NULL,  -- the commit of a deploy that has begun, or empty
        guid TEXT NOT NULL  -- the delivery that deploys it
    );
    """,
    """
    CREATE TABLE renames (  -- checkouts whose repository was renamed or transferred at the forge, as a webhook said
        repository TEXT PRIMARY KEY COLLATE NOCASE,
        name TEXT NOT NULL  -- the new owner/name
    );
    """,
    """
    -- The outbox has events of renamed repositories, too: the new name, and the old full path if groups nest. Else both
    -- are empty.
    ALTER TABLE fleet_outbox ADD COLUMN renamed TEXT NOT NULL DEFAULT '';
    ALTER TABLE fleet_outbox ADD COLUMN path TEXT NOT NULL DEFAULT '';
    """,
)
