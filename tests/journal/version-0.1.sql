-- A journal that version 0.1 wrote, as `.dump` of the sqlite3 shell prints it.
BEGIN TRANSACTION;
CREATE TABLE commits (  -- where a run left its checkout, and below that what else it brought, newest first
        run INTEGER NOT NULL REFERENCES runs,
        position INTEGER NOT NULL,
        id TEXT NOT NULL,
        author TEXT NOT NULL,
        subject TEXT NOT NULL,
        time REAL NOT NULL,
        PRIMARY KEY (run, position)
    ) WITHOUT ROWID;
INSERT INTO "commits" VALUES(1,0,'1111111111111111111111111111111111111111','Ada','Say hello',900.0);
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
INSERT INTO "deliveries" VALUES(1,'settled','push',1001.0,'acme/site','refs/heads/main','0000000000000000000000000000000000000000','1111111111111111111111111111111111111111','ada',1,0);
INSERT INTO "deliveries" VALUES(2,'pending','push',1004.0,'acme/blog','refs/heads/main','0000000000000000000000000000000000000000','1111111111111111111111111111111111111111','ada',2,1);
CREATE TABLE pings (
        hook INTEGER PRIMARY KEY,
        target TEXT NOT NULL COLLATE NOCASE,
        url TEXT NOT NULL,
        guid TEXT NOT NULL,
        received REAL NOT NULL,
        signed TEXT NOT NULL
    );
INSERT INTO "pings" VALUES(7,'acme/site','https://hooks.example.org','g',1.5,'0123456789abcdef');
CREATE TABLE reports (
        repository TEXT NOT NULL COLLATE NOCASE,
        commit_id TEXT NOT NULL,
        run INTEGER NOT NULL,
        state TEXT NOT NULL,
        description TEXT NOT NULL,
        changed REAL NOT NULL,
        version INTEGER NOT NULL DEFAULT 1,
        due REAL,  -- when to send it; none once it was sent
        tries INTEGER NOT NULL DEFAULT 0,
        deployment INTEGER NOT NULL DEFAULT 0,  -- the forge's id of it; 0 while there is none
        PRIMARY KEY (repository, commit_id)
    );
INSERT INTO "reports" VALUES('acme/site','1111111111111111111111111111111111111111',1,'success','updated in 1.0 s',2.5,1,2.5,0,0);
CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice, for logs are named by it
        repository TEXT NOT NULL COLLATE NOCASE,
        trigger TEXT NOT NULL,
        started REAL NOT NULL,
        ended REAL,
        outcome TEXT,
        exit INTEGER,
        before TEXT,
        after TEXT,
        message TEXT
    , fetched REAL, deployed REAL, healthy REAL, brought INTEGER);
INSERT INTO "runs" VALUES(1,'acme/site','push',1002.0,1003.0,'updated',0,'0000000000000000000000000000000000000000','1111111111111111111111111111111111111111','',NULL,NULL,NULL,1);
INSERT INTO "runs" VALUES(2,'acme/blog','push',1005.0,1006.0,'interrupted',0,'0000000000000000000000000000000000000000','','The daemon''s shutdown ended this run; it is done again at the next start.',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(3,'acme/tool','push',1007.0,1008.0,'interrupted',0,'0000000000000000000000000000000000000000','','A signal ended the command that did this run; the daemon tries it again in a minute or two.',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(4,'acme/slow','push',1009.0,1010.0,'timed-out',0,'0000000000000000000000000000000000000000','','',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(5,'acme/dead','push',1011.0,1012.0,'interrupted',NULL,NULL,NULL,'The process that did this run died with it in hand; what it owed is done again.',NULL,NULL,NULL,NULL);
INSERT INTO "runs" VALUES(6,'acme/running','push',1013.0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE told (  -- that somebody was told: this repository fails, for this reason
        repository TEXT PRIMARY KEY COLLATE NOCASE,
        outcome TEXT NOT NULL,
        since REAL NOT NULL,
        at REAL NOT NULL
    );
INSERT INTO "told" VALUES('acme/slow','timed-out',3.5,4.5);
CREATE INDEX runs_in_hand ON runs (id) WHERE outcome IS NULL;
CREATE INDEX deliveries_owed ON deliveries (repository) WHERE owed;
CREATE INDEX deliveries_by_guid ON deliveries (guid);
CREATE INDEX deliveries_by_run ON deliveries (run) WHERE run IS NOT NULL;
CREATE INDEX commits_by_id ON commits (id);
CREATE TRIGGER commits_go_with_their_run AFTER DELETE ON runs BEGIN DELETE FROM commits WHERE run = old.id; END;
CREATE INDEX runs_by_repository ON runs (repository, id, outcome, started, ended);
CREATE INDEX runs_in_sync ON runs (repository, ended) WHERE outcome IN ('updated', 'unchanged', 'cloned');
CREATE INDEX runs_with_commit ON runs (repository, id, after) WHERE after > '';
CREATE INDEX reports_due ON reports (due) WHERE due IS NOT NULL;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('deliveries',2);
INSERT INTO "sqlite_sequence" VALUES('runs',6);
COMMIT;
PRAGMA user_version = 4;
